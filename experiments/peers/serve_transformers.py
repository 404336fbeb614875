"""transformers on torch, served: python serve_transformers.py MODEL TEST_JSON."""

import json
import os
import pathlib
import sys
import time
from typing import Any

import torch
import transformers
from serving import batches, serve


class Transformers:
    """An exported model and the test sentences."""

    def __init__(self, model: str, test: str):
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        start = time.perf_counter()
        self._model = transformers.AutoModelForSeq2SeqLM.from_pretrained(model).eval()
        self._load_seconds = time.perf_counter() - start
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        self._test = json.loads(pathlib.Path(test).read_text())

    def about(self) -> dict[str, Any]:
        """How long loading took."""
        return {"load_seconds": self._load_seconds}

    def tokenise(self) -> dict[str, Any]:
        """Token ids of all test sentences."""
        texts = [sentence["text"] for sentence in self._test]
        start = time.perf_counter()
        ids = self._tokenizer(texts)["input_ids"]
        return {"seconds": time.perf_counter() - start, "ids": ids}

    def detokenise(self, tokens: list[list[int]]) -> list[str]:
        """The text of outputs."""
        return self._tokenizer.batch_decode(tokens, skip_special_tokens=True)

    @torch.inference_mode()
    def search(
        self, first: int, beam: int, alpha: float, batch: int | None, exact: bool = False
    ) -> dict[str, Any]:
        """Searches the first sentences; `batch` in sentences, None one by one.

        bidi has a greatest length for each sentence; here the longest of a batch holds for all.
        `exact` ends a search only when nothing better can come.
        """
        sources = [sentence["source"] for sentence in self._test[:first]]
        tokens: list[list[int]] = [[] for _ in sources]
        start = time.perf_counter()
        for members in batches(sources, batch):
            outputs = self._model.generate(
                **self._padded([sources[i] for i in members]),
                max_new_tokens=max(self._test[i]["longest"] for i in members),
                num_beams=beam,
                length_penalty=alpha if beam > 1 else None,
                early_stopping=("never" if exact else False) if beam > 1 else None,
            )
            for i, output in zip(members, outputs.tolist(), strict=True):
                tokens[i] = self._without_markers(output)
        return {"seconds": time.perf_counter() - start, "tokens": tokens}

    @torch.inference_mode()
    def score(self, tokens: list[list[int]]) -> list[float]:
        """Log-probabilities of an output of each of the first sentences."""
        end, scores = self._model.generation_config.eos_token_id, []
        for sentence, output in zip(self._test, tokens, strict=False):
            labels = torch.tensor([[*output, end]])
            logits = self._model(**self._padded([sentence["source"]]), labels=labels).logits
            log_probs = logits.log_softmax(-1).gather(-1, labels[..., None])
            scores.append(log_probs.sum().item())
        return scores

    def _padded(self, sources: list[list[int]]) -> dict[str, torch.Tensor]:
        longest, pad = max(map(len, sources)), self._model.config.pad_token_id
        return {
            "input_ids": torch.tensor([ids + [pad] * (longest - len(ids)) for ids in sources]),
            "attention_mask": torch.tensor(
                [[1] * len(ids) + [0] * (longest - len(ids)) for ids in sources]
            ),
        }

    def _without_markers(self, output: list[int]) -> list[int]:
        output, end = output[1:], self._model.generation_config.eos_token_id
        return output[: output.index(end)] if end in output else output


if __name__ == "__main__":
    transformers.utils.logging.disable_progress_bar()
    serve(Transformers(*sys.argv[1:]))
