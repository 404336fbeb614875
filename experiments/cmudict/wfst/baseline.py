"""Trains Phonetisaurus on prepared data and scores it: python baseline.py DATA RUN PHONETISAURUS.

DATA is a directory of `bidi.prepare`, PHONETISAURUS the program of that name. RUN gets train.dict,
model.fst, train.log, and for validation and test what `bidi.compare --b` reads: eval/SPLIT.json,
with the metrics of `bidi.evaluate`, and the outputs, eval/SPLIT.txt. Runs in bidi's environment.
"""

import json
import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from bidi.data.prepared import Prepared
from bidi.evaluation import report
from bidi.files import write_whole
from bidi.provenance import provenance


def main(data: str, run: pathlib.Path, phonetisaurus: str) -> None:
    """Trains, writes both splits' pronunciations, and scores them."""
    prepared = Prepared.open(data)
    (run / "eval").mkdir(parents=True, exist_ok=True)
    dictionary, model = run / "train.dict", run / "model.fst"
    lines = lexicon(prepared)
    write_whole(dictionary, "".join(lines))
    start = time.perf_counter()
    with (run / "train.log").open("w") as log:
        command = [phonetisaurus, "train", "--model", model, dictionary]
        subprocess.run(command, stdout=log, stderr=log, check=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    training = {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "pairs": len(lines),
        "unaligned": (run / "train.log").read_text().count("Alignment failed"),
        "model_bytes": model.stat().st_size,
    }
    for split in ("validation", "test"):
        examples = prepared.examples(split)
        words = [example.source for example in examples]
        start = time.perf_counter()
        written = subprocess.run(
            [phonetisaurus, "predict", "--model", model],
            input="".join(f"{word}\n" for word in words),
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        seconds = time.perf_counter() - start
        outputs = pronunciations(words, written)
        result: dict[str, Any] = {
            "system": version(phonetisaurus),
            "split": split,
            "sentences": len(words),
            "metrics": report.scores(outputs, [example.targets for example in examples]),
            "speed": {"seconds": seconds, "sentences_per_second": len(words) / seconds},
            "training": training,
            "provenance": provenance(),
        }
        write_whole(run / "eval" / f"{split}.txt", "".join(f"{text}\n" for text in outputs))
        write_whole(run / "eval" / f"{split}.json", json.dumps(result, indent=1))
        metrics = result["metrics"]
        print(f"{split}: WER {metrics['wer']:.2f}, PER {metrics['per']:.2f}, {seconds:.1f} s")


def version(phonetisaurus: str) -> str:
    """Name and version, from the environment of the program."""
    python = pathlib.Path(phonetisaurus).with_name("python")
    asked = "import importlib.metadata; print(importlib.metadata.version('phonetisaurus'))"
    found = subprocess.run([python, "-c", asked], capture_output=True, text=True, check=True)
    return f"phonetisaurus {found.stdout.strip()}"


def lexicon(prepared: Prepared) -> list[str]:
    """The training pairs as lines: word, tab, phonemes."""
    pairs = prepared.pairs("train")
    source, target = prepared.source_vocabulary, prepared.target_vocabulary
    return [
        f"{source.decode(pair['source'])}\t{target.decode(pair['target'])}\n"
        for pair in pairs.__getitems__(range(len(pairs)))
    ]


def pronunciations(words: Sequence[str], written: str) -> list[str]:
    """The phonemes of each word among lines of word and phonemes; empty for a word without any."""
    by_word = dict(line.partition(" ")[::2] for line in written.splitlines())
    return [by_word.get(word, "") for word in words]


if __name__ == "__main__":
    main(sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3])
