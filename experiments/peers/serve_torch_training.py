"""Training in torch, served: python serve_torch_training.py EXPORTED PAIRS_JSON TOKENS MODE.

MODE is eager or compiled. The exported model's sizes with new parameters; batches of pairs of like
lengths, padded, that hold about TOKENS labels. Loss, optimiser and schedule are those of
multi30k.gin.
"""

import json
import os
import pathlib
import random
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from serving import serve

PAD, EOS, IGNORED = 0, 3, -100
LEARNING_RATE, WARMUP, SMOOTHING, CLIP = 0.001, 600, 0.1, 1.0
POOL = 4096  # pairs sorted by length together


class Training:
    """A model in training."""

    def __init__(self, exported: str, pairs: str, tokens: str, mode: str):
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        torch.manual_seed(1)
        config = transformers.AutoConfig.from_pretrained(exported)
        self._model = transformers.AutoModelForSeq2SeqLM.from_config(config).train()
        self._call = torch.compile(self._model, dynamic=True) if mode == "compiled" else self._model
        self._optimizer = torch.optim.Adam(
            self._model.parameters(), LEARNING_RATE, betas=(0.9, 0.98), eps=1e-9, fused=True
        )
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: min((step + 1) / WARMUP, (WARMUP / (step + 1)) ** 0.5)
        )
        self._batches = batches(json.loads(pathlib.Path(pairs).read_text()), int(tokens))
        self._start = config.decoder_start_token_id

    def train(self, updates: int) -> dict[str, Any]:
        """So many updates: how long they took, their labels, and the last loss."""
        labels, start = 0, time.perf_counter()
        for _ in range(updates):
            batch = next(self._batches)
            loss = self._update(batch)
            labels += sum(len(pair["target"]) + 1 for pair in batch)
        return {"seconds": time.perf_counter() - start, "tokens": labels, "loss": loss.item()}

    def _update(self, batch: list[dict[str, list[int]]]) -> torch.Tensor:
        sources = padded([[*pair["source"], EOS] for pair in batch], PAD)
        inputs = padded([[self._start, *pair["target"]] for pair in batch], PAD)
        labels = padded([[*pair["target"], EOS] for pair in batch], IGNORED)
        logits = self._call(
            input_ids=sources,
            attention_mask=sources != PAD,
            decoder_input_ids=inputs,
            use_cache=False,
        ).logits
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1),
            labels.flatten(),
            ignore_index=IGNORED,
            label_smoothing=SMOOTHING,
        )
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), CLIP)
        self._optimizer.step()
        self._schedule.step()
        return loss.detach()


def batches(pairs: list[dict[str, list[int]]], tokens: int) -> Iterator[list[dict]]:
    """Batches for ever: a shuffled pool in order of length, cut where `tokens` are full."""
    draw = random.Random(1)
    while True:
        draw.shuffle(pairs)
        for place in range(0, len(pairs), POOL):
            pool = sorted(
                pairs[place : place + POOL], key=lambda p: (len(p["target"]), len(p["source"]))
            )
            cut: list[list[dict]] = [[]]
            labels = 0
            for pair in pool:
                cut[-1].append(pair)
                labels += len(pair["target"]) + 1
                if labels >= tokens:
                    cut.append([])
                    labels = 0
            full = cut[:-1]
            draw.shuffle(full)
            yield from full


def padded(rows: list[list[int]], value: int) -> torch.Tensor:
    """A matrix as wide as the longest row."""
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])


if __name__ == "__main__":
    transformers.utils.logging.disable_progress_bar()
    serve(Training(*sys.argv[1:]))
