"""Writes what all systems work on as JSON: python dump.py WORKDIR DIRECTORY (bidi's environment).

test.json: of each test sentence its text, its token ids with end marker, its reference, and the
greatest length of its output, end marker included.
pairs.json: token ids of the training pairs, without markers; train.source and train.target: the
same as pieces between spaces, a pair a line, and dev.source and dev.target the first of them.
"""

import json
import pathlib
import sys

import numpy as np

from bidi.data.prepared import Prepared
from bidi.experiment import load_run
from bidi.tokens import EOS


def main(workdir: str, directory: pathlib.Path) -> None:
    """Reads the prepared data of a run and writes all these files."""
    experiment = load_run(workdir, [])
    prepared = Prepared.open(experiment.data.directory)
    vocabulary = prepared.source_vocabulary  # the target's as well
    test = []
    for example in prepared.examples("test"):
        source = vocabulary.encode(example.source).tolist()
        test.append(
            {
                "text": example.source,
                "source": [*source, EOS],
                "reference": example.targets[0],
                "longest": int(experiment.search.max_length(np.array(len(source)))),
            }
        )
    pairs = prepared.pairs("train")
    training = [
        {side: ids.tolist() for side, ids in pair.items()}
        for pair in pairs.__getitems__(range(len(pairs)))
    ]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "test.json").write_text(json.dumps(test))
    (directory / "pairs.json").write_text(json.dumps(training))
    for side in ("source", "target"):
        lines = [" ".join(vocabulary.pieces(pair[side])) + "\n" for pair in training]
        (directory / f"train.{side}").write_text("".join(lines))
        (directory / f"dev.{side}").write_text("".join(lines[:20]))


if __name__ == "__main__":
    main(sys.argv[1], pathlib.Path(sys.argv[2]))
