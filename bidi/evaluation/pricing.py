"""Prices: log-probabilities of given outputs, whole or label by label, by a trained model.

Letters: B batch, P pairs or candidates, W ways, S source steps, T target steps, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bidi.data.streams import Streams
from bidi.evaluation.batching import Batching, candidate_streams, round_up, source_batch
from bidi.models.model import Model
from bidi.tokens import PAD


@dataclasses.dataclass(frozen=True)
class Priced:
    """What a model says at each step of given streams.

    Attributes:
        log_probs_PWT: float32, of the labels; beyond the end of a stream it means nothing.
        predicted_PWT: int32, the token that no other is likelier than.
    """

    log_probs_PWT: np.ndarray
    predicted_PWT: np.ndarray


class Pricing:
    """A model that prices outputs; `Generator.score` and `Generator.price` say what.

    Its sources are token ids as the model reads them, int32 [s].
    """

    def __init__(self, model: Model, params: Any, streams: Streams, batching: Batching):
        """Makes programs for `score` and `price`, compiled where they are first used."""
        self._model, self._params, self._streams = model, params, streams
        self._batching = batching
        self._compiled_price = functools.cache(self._compile_price)
        self._compiled_score = functools.cache(self._compile_score)

    def score(
        self,
        sources: Sequence[np.ndarray],
        candidates: Sequence[Sequence[tuple[int, ...]]],
        interact: bool,
    ) -> list[dict[str, np.ndarray]]:
        """Of whole outputs: for each source and writer float32 [candidates of the source]."""
        most = round_up(max((len(listed) for listed in candidates), default=1), 4)
        scores: list[dict[str, np.ndarray]] = [{} for _ in sources]
        # A row is as long as its source and its longest candidate.
        lengths = [
            max(len(ids), *(self._streams.length(len(tokens)) for tokens in listed), 1)
            for ids, listed in zip(sources, candidates, strict=True)
        ]
        for indices, length, rows in self._batching.batches(lengths, streams=most):
            batch = source_batch([sources[i] for i in indices], length, rows)
            streams = candidate_streams(
                self._streams, [candidates[i] for i in indices], most, length, rows
            )
            scores_BPW = self._run(self._compiled_score(interact), batch, streams)
            if self._streams.layout == "halves":
                scores_BPW = scores_BPW.sum(axis=-1, keepdims=True)
            for row, index in enumerate(indices):
                for way, name in enumerate(self._streams.writers):
                    scores[index][name] = scores_BPW[row, : len(candidates[index]), way]
        return scores

    def price(
        self,
        sources: Sequence[np.ndarray],
        outputs: Sequence[Sequence[tuple[int, ...]]],
        pairs: Sequence[tuple[int, ...]],
        interact: bool,
    ) -> list[Priced]:
        """Of labels one by one, for P pairs of the outputs' streams."""
        pairs_PW = np.array(pairs)
        ways_W = np.arange(pairs_PW.shape[1])
        priced: list[Priced | None] = [None] * len(sources)
        lengths = [
            max(len(ids), *(self._streams.length(len(tokens)) for tokens in listed))
            for ids, listed in zip(sources, outputs, strict=True)
        ]
        for indices, length, rows in self._batching.batches(lengths, streams=len(pairs)):
            batch = source_batch([sources[i] for i in indices], length, rows)
            of_outputs = candidate_streams(
                self._streams, [outputs[i] for i in indices], len(outputs[0]), length, rows
            )
            streams = {key: value[:, pairs_PW, ways_W] for key, value in of_outputs.items()}
            log_probs_BPWT, predicted_BPWT = self._run(
                self._compiled_price(interact), batch, streams
            )
            for row, index in enumerate(indices):
                priced[index] = Priced(log_probs_BPWT[row], predicted_BPWT[row])
        return [one for one in priced if one is not None]

    def _run(self, program: Any, *batches: dict[str, np.ndarray]) -> Any:
        """What a program gives for batches [B, ...], on this machine."""
        divided = map(self._batching.divided, batches)
        return self._batching.joined(jax.device_get(program(self._params, *divided)))

    def _compile_score(self, interact: bool) -> Any:
        interact = interact or self._streams.layout == "halves"

        def score(params: Any, batch: dict[str, jax.Array], streams: dict[str, jax.Array]) -> Any:
            log_probs_BPWTV = self._log_probs(params, batch, streams, interact)
            log_probs_BPWT = _of_labels(log_probs_BPWTV, streams["labels"])
            return (log_probs_BPWT * streams["weights"]).sum(axis=-1)

        return self._batching.program(score)

    def _compile_price(self, interact: bool) -> Any:
        def price(params: Any, batch: dict[str, jax.Array], streams: dict[str, jax.Array]) -> Any:
            log_probs_BPWTV = self._log_probs(params, batch, streams, interact)
            predicted_BPWT = log_probs_BPWTV.argmax(axis=-1)
            return _of_labels(log_probs_BPWTV, streams["labels"]), predicted_BPWT

        return self._batching.program(price)

    def _log_probs(
        self,
        params: Any,
        batch: dict[str, jax.Array],
        streams: dict[str, jax.Array],
        interact: bool,
    ) -> jax.Array:
        """Log-probabilities at each step of whole streams, [B, P, W, T, V]."""
        apply = functools.partial(self._model.apply, {"params": params})
        inputs_BPWT = streams["inputs"]
        segments_BPWT = (inputs_BPWT != PAD).astype(jnp.int32)
        positions_BPWT = jnp.broadcast_to(
            jnp.arange(inputs_BPWT.shape[-1])[None, None, None], inputs_BPWT.shape
        )
        logits_BPWTV: Any = apply(
            apply(batch, examples=1, method="start"),
            inputs_BPWT,
            segments_BPWT,
            positions_BPWT,
            interact=interact,
            method="decode",
        )
        return jax.nn.log_softmax(logits_BPWTV)


def _of_labels(log_probs_BPWTV: jax.Array, labels_BPWT: jax.Array) -> jax.Array:
    return jnp.take_along_axis(log_probs_BPWTV, labels_BPWT[..., None], axis=-1)[..., 0]
