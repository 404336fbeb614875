"""How fast the systems search: python search_speed.py WORKDIR RUN [SENTENCES [SINGLES [ROUNDS]]].

RUN holds huggingface/, ctranslate2/ and test.json; tables go to stdout, all numbers to
RUN/search_speed.json. Systems take turns: a round is one search by each of them, so that whatever
else the machine does falls on all alike. The first search with a beam and a batch, which compiles,
is timed apart.
"""

import contextlib
import json
import pathlib
import statistics
import sys
from typing import Any

import sacrebleu
from serving import Served

ALPHA = 0.6
# Tokens of sources for bidi, sentences for the others.
BATCHES = {
    "bidi": (512, 1024, 2048, 4096),
    "transformers": (16, 32, 64, 128, 256),
    "ctranslate2": (8, 16, 32, 64, 128, 256),
}

# How each is served.
SYSTEMS = {
    "bidi": "bidi",
    "transformers": "transformers",
    "CTranslate2": "ctranslate2",
    "CTranslate2, int8": "ctranslate2",
}


def main(workdir: str, run: str, sentences: int = 1000, singles: int = 100, rounds: int = 3):
    """Measures on one core and on two, and prints."""
    test = pathlib.Path(run) / "test.json"
    references = [sentence["reference"] for sentence in json.loads(test.read_text())]
    results = []
    for threads in (1, 2):
        with contextlib.ExitStack() as stack:
            served = {
                name: stack.enter_context(_serve(name, threads, workdir, run, str(test)))
                for name in SYSTEMS
            }
            for beam in (4, 1):
                for first, choose in ((singles, _alone), (sentences, _best_batch)):
                    asked = {"first": first, "beam": beam, "alpha": ALPHA}
                    chosen = {name: choose(name, system, asked) for name, system in served.items()}
                    for name, searches in _rounds(served, asked, chosen, rounds).items():
                        texts = served["transformers"].ask(
                            "detokenise", tokens=searches[-1]["tokens"]
                        )
                        bleu = sacrebleu.corpus_bleu(texts, [references[:first]]).score
                        row = _row(name, threads, beam, *chosen[name], searches, bleu)
                        results.append(row | served[name].ask("about"))
    (pathlib.Path(run) / "search_speed.json").write_text(json.dumps(results, indent=1))
    _print(results)


def _serve(name: str, threads: int, workdir: str, run: str, test: str) -> Served:
    exported, converted = f"{run}/huggingface", f"{run}/ctranslate2"
    compute = "int8" if name.endswith("int8") else "float32"
    arguments = {
        "bidi": (workdir, test),
        "transformers": (exported, test),
        "ctranslate2": (converted, exported, test, compute),
    }
    kind = SYSTEMS[name]
    return Served(kind, threads, *arguments[kind])


def _alone(name: str, system: Served, asked: dict[str, Any]) -> tuple[None, dict[str, Any]]:
    """No batch, and the first search one by one."""
    del name
    return None, system.ask("search", batch=None, **asked)


def _best_batch(name: str, system: Served, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """The batch of the fastest search, and the first one with it; all tried go to stderr."""
    firsts, seconds = {}, {}
    for batch in BATCHES[SYSTEMS[name]]:
        firsts[batch] = system.ask("search", batch=batch, **asked)  # compiles, or warms up
        seconds[batch] = system.ask("search", batch=batch, **asked)["seconds"]
    print(f"{name}, {asked}: seconds by batch {seconds}", file=sys.stderr, flush=True)
    best = min(seconds, key=seconds.__getitem__)
    return best, firsts[best]


def _rounds(
    served: dict[str, Served],
    asked: dict[str, Any],
    chosen: dict[str, tuple[int | None, dict[str, Any]]],
    rounds: int,
) -> dict[str, list[dict[str, Any]]]:
    """The systems in turns, each with its batch."""
    searches: dict[str, list[dict[str, Any]]] = {name: [] for name in served}
    for _ in range(rounds):
        for name, system in served.items():
            searches[name].append(system.ask("search", batch=chosen[name][0], **asked))
    return searches


def _row(
    name: str,
    threads: int,
    beam: int,
    batch: int | None,
    first: dict[str, Any],
    searches: list[dict[str, Any]],
    bleu: float,
) -> dict[str, Any]:
    tokens = searches[-1]["tokens"]
    return {
        "system": name,
        "threads": threads,
        "beam": beam,
        "batch": batch,
        "sentences": len(tokens),
        "seconds": [found["seconds"] for found in searches],
        "first_seconds": first["seconds"],
        "compile_seconds": first.get("compile_seconds", 0.0),
        "tokenise_seconds": searches[-1].get("tokenise_seconds", 0.0),
        "tokens": sum(len(output) + 1 for output in tokens),
        "bleu": bleu,
    }


def _print(results: list[dict[str, Any]]) -> None:
    print("| threads | beam | batch | system | sentences/s | spread | ms each | tokens/s | BLEU |")
    print("|--:|--:|--:|---|--:|--:|--:|--:|--:|")
    for row in sorted(results, key=lambda row: (row["threads"], -row["beam"], row["batch"] or 0)):
        median = statistics.median(row["seconds"])
        low, high = (row["sentences"] / choose(row["seconds"]) for choose in (max, min))
        unit = " tokens" if row["system"] == "bidi" else ""
        batch = 1 if row["batch"] is None else f"{row['batch']}{unit}"
        print(
            f"| {row['threads']} | {row['beam']} | {batch} | {row['system']} "
            f"| {row['sentences'] / median:.1f} | {low:.1f}-{high:.1f} "
            f"| {1000 * median / row['sentences']:.1f} | {row['tokens'] / median:,.0f} "
            f"| {row['bleu']:.2f} |"
        )
    print("\n| threads | beam | batch | system | load s | first search s | of it compiling s |")
    print("|--:|--:|--:|---|--:|--:|--:|")
    for row in results:
        print(
            f"| {row['threads']} | {row['beam']} | {row['batch'] or 1} | {row['system']} "
            f"| {row['load_seconds']:.2f} | {row['first_seconds']:.1f} "
            f"| {row['compile_seconds']:.1f} |"
        )
    print(
        "\nbidi compiles anew here: its cache on disk, which spares later runs most of it, is off."
    )
    slowest = max(row["tokenise_seconds"] / min(row["seconds"]) for row in results)
    print(f"\nbidi's times include its tokenisation, at most {100 * slowest:.1f} % of them.")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
