"""bidi, served: python serve_bidi.py WORKDIR TEST_JSON (bidi's environment)."""

import dataclasses
import json
import pathlib
import sys
import time
from typing import Any

from serving import serve

from bidi.data.vocabulary import Vocabulary
from bidi.evaluation.restore import load_system
from bidi.experiment import load_run
from bidi.provenance import CompileMeter


class Bidi:
    """A trained model and the test sentences."""

    def __init__(self, workdir: str, test: str):
        start = time.perf_counter()
        self._experiment = load_run(workdir, [])
        (generator,) = load_system(workdir, self._experiment, "best", None).generators
        self._generators = {None: generator}
        self._load_seconds = time.perf_counter() - start
        self._vocabulary = Vocabulary((pathlib.Path(workdir) / "source.model").read_bytes())
        self._texts = [sentence["text"] for sentence in json.loads(pathlib.Path(test).read_text())]

    def about(self) -> dict[str, Any]:
        """How long loading took."""
        return {"load_seconds": self._load_seconds}

    def search(
        self, first: int, beam: int, alpha: float, batch: int | None, exact: bool = True
    ) -> dict[str, Any]:
        """Searches the first sentences; `batch` in tokens of the sources, None one by one.

        The search always is exact. Seconds include tokenisation, which is timed apart as well.
        """
        del exact
        texts = self._texts[:first]
        if batch not in self._generators:
            self._generators[batch] = self._generators[None].anew(batch_tokens=batch)
        generator = self._generators[batch]
        config = dataclasses.replace(
            self._experiment.search,
            coupling="none",
            beam_size=beam,
            length_penalty="plain",
            alpha=alpha,
        )
        compiled = CompileMeter()
        start = time.perf_counter()
        if batch is None:
            found = [generator.search([text], config)[0] for text in texts]
        else:
            found = generator.search(texts, config)
        seconds = time.perf_counter() - start
        start = time.perf_counter()
        for text in texts:
            self._vocabulary.encode(text)
        return {
            "seconds": seconds,
            "compile_seconds": compiled.seconds,
            "tokenise_seconds": time.perf_counter() - start,
            "tokens": [list(one.winner.tokens) for one in found],
            "log_probs": [one.winner.log_prob for one in found],
        }

    def score(self, tokens: list[list[int]]) -> list[float]:
        """Log-probabilities of an output of each of the first sentences."""
        candidates = [[tuple(one)] for one in tokens]
        scores = self._generators[None].score(self._texts[: len(tokens)], candidates)
        return [float(score["l2r"][0]) for score in scores]


if __name__ == "__main__":
    serve(Bidi(*sys.argv[1:]))
