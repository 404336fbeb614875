"""How fast the systems train: python training_speed.py RUN SOCKEYE [UPDATES [ROUNDS]].

RUN holds huggingface/ and what dump.py wrote, SOCKEYE is the environment that Sockeye is installed
in; the table goes to stdout, all numbers to RUN/training_speed.json. Systems take turns, UPDATES
each a round. bidi and Sockeye are run as their users run them, by bidi.train and sockeye-train, and
what they say of themselves is read; the first fifth of such a run does not count.
"""

import contextlib
import json
import pathlib
import re
import shlex
import statistics
import subprocess
import sys
import tempfile

from serving import Served, environment, on_cores

BOTH = ["--gin.Streams.ways='both'"]
LAYERS = ["--gin.Transformer.interaction='layers'", "--gin.Search.coupling='paired'"]
OURS = {
    "bidi, L2R": [],
    "bidi, both directions": BOTH,
    "bidi, both, interacting": [*BOTH, *LAYERS],
}
THEIRS = {"transformers": "eager", "transformers, torch.compile": "compiled"}
SHARE = 5  # metrics are written so often in a run

SOCKEYE = shlex.split("""
--use-cpu --shared-vocab --weight-tying-type src_trg_softmax --dtype float32
--num-layers 3:3 --transformer-model-size 256 --transformer-attention-heads 4
--transformer-feed-forward-num-hidden 512 --transformer-activation-type relu
--transformer-preprocess= --transformer-postprocess drn --transformer-dropout-prepost 0.1
--transformer-dropout-attention 0 --transformer-dropout-act 0 --max-seq-len 127:127
--batch-type max-word --label-smoothing 0.1 --gradient-clipping-type norm
--gradient-clipping-threshold 1 --optimizer adam --optimizer-betas 0.9:0.98
--initial-learning-rate 0.001 --learning-rate-warmup 600
--learning-rate-scheduler-type inv-sqrt-decay --seed 1
""")


def main(run: str, sockeye: str, updates: int = 100, rounds: int = 3) -> None:
    """Measures on one core and on two, and prints."""
    if updates < SHARE:
        sys.exit(f"{updates} updates: their speed is that of fifths, so make {SHARE} or more")
    exported, pairs = f"{run}/huggingface", f"{run}/pairs.json"
    results = []
    for threads in (1, 2):
        # bidi compiles, or finds what it compiled before.
        warm = {name: _train_bidi(bindings, threads, SHARE) for name, bindings in OURS.items()}
        tokens = str(round(warm["bidi, L2R"]["tokens"] / warm["bidi, L2R"]["updates"]))
        with contextlib.ExitStack() as stack:
            served = {
                name: stack.enter_context(
                    Served("torch training", threads, exported, pairs, tokens, mode)
                )
                for name, mode in THEIRS.items()
            }
            # torch.compile does its work in these, for each new kind of shape.
            first = {
                name: peer.ask("train", updates=max(updates // 2, 2))["seconds"]
                for name, peer in served.items()
            }
            measured: dict[str, list[dict]] = {name: [] for name in (*OURS, *served, "Sockeye")}
            for _ in range(rounds):
                for name, bindings in OURS.items():
                    measured[name].append(_train_bidi(bindings, threads, updates))
                for name, peer in served.items():
                    measured[name].append(peer.ask("train", updates=updates) | {"updates": updates})
                measured["Sockeye"].append(
                    _train_sockeye(sockeye, run, threads, updates, int(tokens))
                )
        results += [
            {
                "system": name,
                "threads": threads,
                "rounds": rounds_of,
                "first_seconds": first.get(name),
            }
            for name, rounds_of in measured.items()
        ]
    (pathlib.Path(run) / "training_speed.json").write_text(json.dumps(results, indent=1))
    _print(results)


def _train_bidi(bindings: list[str], threads: int, updates: int) -> dict[str, float]:
    """Seconds and labels of the last four fifths of a run."""
    with tempfile.TemporaryDirectory() as workdir:
        command = [
            *on_cores(threads),
            "bash",
            "-c",
            'source launch/environment.sh && exec python -m bidi.train "$@"',
            "bash",
            "--gin_file=experiments/peers/multi30k.gin",
            f"--workdir={workdir}/run",
            # Work that the others do not do.
            "--gin.Training.ema_decay=0.0",
            f"--gin.Training.steps={updates}",
            f"--gin.Training.log_every={updates // SHARE}",
            f"--gin.Training.evaluate_every={updates}",
            f"--gin.Training.checkpoint_every={updates}",
            *bindings,
        ]
        _run(command, threads)
        lines = (pathlib.Path(workdir) / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "train/milliseconds_per_update" in row][1:]
    window = updates // SHARE
    seconds = [row["train/milliseconds_per_update"] * window / 1000 for row in rows]
    tokens = [
        row["train/tokens_per_second"] * second for row, second in zip(rows, seconds, strict=True)
    ]
    return {"seconds": sum(seconds), "tokens": sum(tokens), "updates": window * len(rows)}


def _run(command: list[str], threads: int) -> None:
    """Its errors are seen, not what it prints."""
    subprocess.run(command, check=True, env=environment(threads), stdout=subprocess.DEVNULL)


def _train_sockeye(
    sockeye: str, run: str, threads: int, updates: int, tokens: int
) -> dict[str, float]:
    """The same of Sockeye, whose labels are counted as the mean of all pairs times its pairs."""
    pairs = json.loads((pathlib.Path(run) / "pairs.json").read_text())
    labels = statistics.mean(len(pair["target"]) + 1 for pair in pairs)
    window = updates // SHARE
    with tempfile.TemporaryDirectory() as workdir:
        command = [*on_cores(threads), f"{sockeye}/bin/sockeye-train", *SOCKEYE]
        command += ["-s", f"{run}/train.source", "-t", f"{run}/train.target"]
        command += ["-vs", f"{run}/dev.source", "-vt", f"{run}/dev.target", "-o", f"{workdir}/run"]
        # It counts padding, and the longer of source and target.
        command += ["--batch-size", str(round(1.4 * tokens))]
        command += ["--max-updates", str(updates), "--checkpoint-interval", str(window)]
        _run(command, threads)
        log = (pathlib.Path(workdir) / "run" / "log").read_text()
    rows = [
        (int(samples), float(speed))
        for samples, speed in re.findall(r"Samples=(\d+) .*Updates/sec=([\d.]+)", log)
    ]
    return {
        "seconds": sum(window / speed for _, speed in rows[1:]),
        "tokens": (rows[-1][0] - rows[0][0]) * labels,
        "updates": window * len(rows[1:]),
    }


def _print(results: list[dict]) -> None:
    print("| threads | system | target tokens/s | spread | tokens an update | ms an update |")
    print("|--:|---|--:|--:|--:|--:|")
    for row in results:
        speeds = [one["tokens"] / one["seconds"] for one in row["rounds"]]
        tokens = sum(one["tokens"] for one in row["rounds"])
        updates = sum(one["updates"] for one in row["rounds"])
        seconds = statistics.median(one["seconds"] / one["updates"] for one in row["rounds"])
        print(
            f"| {row['threads']} | {row['system']} | {statistics.median(speeds):,.0f} "
            f"| {min(speeds):,.0f}-{max(speeds):,.0f} | {tokens / updates:,.0f} "
            f"| {1000 * seconds:,.0f} |"
        )
    for row in results:
        if row["first_seconds"] is not None:
            print(
                f"\n{row['system']}, {row['threads']} threads: updates before the measured ones "
                f"took {row['first_seconds']:.0f} s"
            )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
