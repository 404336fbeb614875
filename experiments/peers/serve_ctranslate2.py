"""CTranslate2, served: python serve_ctranslate2.py MODEL EXPORTED TEST_JSON COMPUTE_TYPE."""

import json
import os
import pathlib
import sys
import time
from typing import Any

import ctranslate2
from serving import batches, serve


class CTranslate2:
    """A converted model and the test sentences, as pieces: what CTranslate2 reads and writes."""

    def __init__(self, model: str, exported: str, test: str, compute_type: str):
        threads = int(os.environ["OMP_NUM_THREADS"])
        start = time.perf_counter()
        # A sentence alone is computed by all threads; of batches each thread takes its own.
        self._translator, self._of_batches = (
            ctranslate2.Translator(
                model,
                compute_type=compute_type,
                inter_threads=threads // intra_threads,
                intra_threads=intra_threads,
            )
            for intra_threads in (threads, 1)
        )
        self._load_seconds = time.perf_counter() - start
        directory = pathlib.Path(exported)
        self._ids = json.loads((directory / "vocab.json").read_text())
        self._pieces = {token: piece for piece, token in self._ids.items()}
        config = json.loads((directory / "generation_config.json").read_text())
        self._suppressed = [[self._pieces[token]] for token in config["suppress_tokens"]]
        sentences = json.loads(pathlib.Path(test).read_text())
        self._sources = [[self._pieces[token] for token in one["source"]] for one in sentences]
        self._longest = [one["longest"] for one in sentences]

    def about(self) -> dict[str, Any]:
        """How long loading took, of both."""
        return {"load_seconds": self._load_seconds}

    def search(
        self, first: int, beam: int, alpha: float, batch: int | None, exact: bool = False
    ) -> dict[str, Any]:
        """Searches the first sentences; `batch` in sentences, None one by one.

        The greatest length of a batch's outputs holds for all of them. `exact` waits for many more
        hypotheses to end.
        """
        options = {
            "beam_size": beam,
            "length_penalty": alpha,
            "patience": 8 if exact and beam > 1 else 1,
            "suppress_sequences": self._suppressed,
        }
        sources = self._sources[:first]
        tokens: list[list[int]] = [[] for _ in sources]
        translator = self._of_batches if batch else self._translator
        start = time.perf_counter()
        asked = []
        for members in batches(sources, batch):
            results = translator.translate_batch(
                [sources[i] for i in members],
                max_decoding_length=max(self._longest[i] for i in members),
                asynchronous=bool(batch),
                **options,
            )
            asked += zip(members, results, strict=True)
        for i, result in asked:
            hypotheses = (result.result() if batch else result).hypotheses
            tokens[i] = [self._ids[piece] for piece in hypotheses[0]]
        return {"seconds": time.perf_counter() - start, "tokens": tokens}

    def score(self, tokens: list[list[int]]) -> list[float]:
        """Log-probabilities of an output of each of the first sentences."""
        outputs = [[self._pieces[token] for token in output] for output in tokens]
        scores = self._translator.score_batch(self._sources[: len(tokens)], outputs)
        return [sum(one.log_probs) for one in scores]


if __name__ == "__main__":
    serve(CTranslate2(*sys.argv[1:]))
