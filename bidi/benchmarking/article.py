"""Su 2019's search as his code runs it: numpy, one sentence at a time, nothing kept between steps.

At every step the source is read anew, and for K hypotheses of each direction K x K pairs of whole
prefixes. His code's accidents are mended: what has ended grows no more and is not lost, each
direction has an end marker of its own, nothing is added under the logarithm. What the batched
search is compared with, in what it finds (tests) and in speed (`python -m bidi.benchmark article`).

Letters: N pairs, W ways, S source steps, T target steps, D model, V vocabulary.
"""

import dataclasses
import itertools
from typing import Any

import numpy as np

from bidi.data.streams import Streams
from bidi.evaluation.found import Found, Hypothesis
from bidi.models.config import RecurrentConfig
from bidi.search.config import SearchConfig
from bidi.tokens import FIRST_TEXT_ID

Params = Any


@dataclasses.dataclass(frozen=True)
class Article:
    """A recurrent model of a joint vocabulary, with interaction and copy prior, and its search.

    Attributes:
        params: of `bidi.models.recurrent.Recurrent` as numpy arrays, whose dtype is computed in.
        config: the model's.
        streams: what it writes.
        search: of coupling `product` with equal weights; `rank_unfinished` is not looked at.
    """

    params: Params
    config: RecurrentConfig
    streams: Streams
    search: SearchConfig

    def find(self, source_S: np.ndarray, max_length: int) -> Found:
        """The best outputs for a source of token ids, its end marker included."""
        alive: list[list[Hypothesis]] = [
            [Hypothesis((), way, 0.0, 0.0, False)] for way in self.streams.directions
        ]
        ended: list[list[Hypothesis]] = [[], []]
        for step in range(max_length):
            candidates = self._candidates(source_S, alive, step)
            for way, found in enumerate(candidates):
                ended[way] += [h for h in found[: self._kept] if h.finished]
                ended[way] = sorted(ended[way], key=_score)[: self._kept]
                alive[way] = [h for h in found if not h.finished][: self._kept]
            if all(map(self._is_settled, ended, alive, [max_length] * 2)):
                break
        n_best: dict[str, tuple[Hypothesis, ...]] = {
            name: tuple(map(_in_reading_order, (ended[way] + alive[way])[: self.search.n_best]))
            for way, name in enumerate(self.streams.directions)
        }
        best = [listed[0] for listed in n_best.values()]
        return Found(n_best, min(best, key=lambda h: (not h.finished, -h.score)))

    @property
    def _kept(self) -> int:
        return self.search.make_coupling(2).hypotheses

    def _candidates(
        self, source_S: np.ndarray, alive: list[list[Hypothesis]], step: int
    ) -> list[list[Hypothesis]]:
        """Of each way, hypotheses with one token more: as many as can be of use, best first."""
        pairs = list(itertools.product(*alive))
        starts = self.streams.starts
        inputs_NWT = np.array(
            [[(start, *h.tokens) for start, h in zip(starts, pair, strict=True)] for pair in pairs]
        )
        logits_NWV = self.logits(source_S, inputs_NWT, last=True)[:, :, 0]
        shape = (len(alive[0]), len(alive[1]), -1)
        listed = []
        for way, end in enumerate(self.streams.ends):
            p_V = softmax(logits_NWV[:, way]).reshape(shape).mean(axis=1 - way)
            allowed = [*range(FIRST_TEXT_ID, p_V.shape[-1])] + [end] * (
                step >= self.search.min_length
            )
            log_p_V = np.full_like(p_V, -np.inf)
            log_p_V[:, allowed] = np.log(p_V[:, allowed])
            total = log_p_V + np.array([[h.log_prob] for h in alive[way]])
            best = np.argsort(-total, axis=None, kind="stable")[: 2 * self._kept]
            listed.append(
                [
                    self._grown(alive[way][number], int(token), float(total[number, token]), end)
                    for number, token in zip(*np.unravel_index(best, total.shape), strict=True)
                    if np.isfinite(total[number, token])
                ]
            )
        return listed

    def _grown(self, hypothesis: Hypothesis, token: int, log_prob: float, end: int) -> Hypothesis:
        tokens, predictions = hypothesis.tokens, len(hypothesis.tokens) + 1
        return Hypothesis(
            tokens if token == end else (*tokens, token),
            hypothesis.direction,
            log_prob,
            log_prob / self._penalty(predictions),
            token == end,
        )

    def _penalty(self, predictions: int) -> float:
        base = (5 + predictions) / 6 if self.search.length_penalty == "gnmt" else predictions
        return base**self.search.alpha

    def _is_settled(
        self, ended: list[Hypothesis], alive: list[Hypothesis], max_length: int
    ) -> bool:
        """Whether no alive hypothesis can come among the n best, were all the rest certain."""
        if len(ended) < self.search.n_best:
            return False
        last = ended[self.search.n_best - 1].score
        lengths = range(len(alive[0].tokens) + 1, max_length + 1) if alive else ()
        return all(h.log_prob / self._penalty(n) <= last for h in alive for n in lengths)

    def logits(self, source_S: np.ndarray, inputs_NWT: np.ndarray, last: bool) -> np.ndarray:
        """[N, W, T, V], of pairs that all have this source; `last`: of the last step, T = 1."""
        params = self.params
        embedding_VD = params["target_embedding"]["embedding"]
        encoded_SD = self._encode(embedding_VD[source_S])
        decoders = [_of_way(params["decoder"], way) for way in (0, 1)]
        states = [
            self._states(decoder, embedding_VD[inputs_NWT[:, way]], encoded_SD)
            for way, decoder in enumerate(decoders)
        ]
        table_DV = params["output"]["embedding"].T
        occurs_V = np.isin(np.arange(len(embedding_VD)), source_S[source_S >= FIRST_TEXT_ID])
        prior_V = params["prior"]["scale"] * occurs_V + params["prior"]["bias"]
        outs = [self._read(decoders, states, encoded_SD, way, last) for way in (0, 1)]
        return (np.stack(outs, axis=1) @ table_DV + prior_V) / 2

    def _encode(self, x_SD: np.ndarray) -> np.ndarray:
        for layer in range(self.config.encoder_layers):
            of_layer = self.params["encoder"]
            norm, lstms = of_layer[f"norm_{layer}"], of_layer[f"layer_{layer}"]
            x_SD = normalised(x_SD) * norm["scale"] + norm["bias"]
            forward, backward = _of_way(lstms, 0), _of_way(lstms, 1)
            both = lstm(forward, x_SD[None])[0], lstm(backward, x_SD[None, ::-1])[0, ::-1]
            x_SD = np.concatenate(both, axis=-1)
        return x_SD

    def _states(self, decoder: Params, y_NTD: np.ndarray, encoded_SD: np.ndarray) -> np.ndarray:
        def modulated(number: int, x_NTD: np.ndarray) -> np.ndarray:
            modulation = decoder[f"modulations_{number}"]
            hidden_D = np.maximum(dense(modulation["in"], encoded_SD.max(axis=0)), 0)
            scale_D, shift_D = np.split(dense(modulation["out"], hidden_D), 2)
            return normalised(x_NTD) * (1 + scale_D) + shift_D

        y_NTD = modulated(0, y_NTD)
        for layer in range(self.config.decoder_layers):
            y_NTD = modulated(layer + 1, lstm(decoder[f"layers_{layer}"], y_NTD))
        return y_NTD

    def _read(
        self,
        decoders: list[Params],
        states: list[np.ndarray],
        encoded_SD: np.ndarray,
        way: int,
        last: bool,
    ) -> np.ndarray:
        """From the states of both ways to what the labels of one are predicted from."""
        own, other = decoders[way], decoders[1 - way]
        heads, steps = self.config.heads, states[way].shape[1]
        wanted = slice(steps - 1 if last else 0, steps)
        x_NTD = states[way][:, wanted]
        source_k, source_v = np.split(dense(own["source_attention"]["kv"], encoded_SD), 2, axis=-1)
        of_source = attend(dense(own["source_attention"]["q"], x_NTD), source_k, source_v, heads)
        q_NTD = np.split(dense(own["qkv"], x_NTD), 3, axis=-1)[0]
        _, k_NTD, v_NTD = np.split(dense(other["qkv"], states[1 - way]), 3, axis=-1)
        seen_TT = np.tri(steps, dtype=bool)[wanted]
        of_other = attend(q_NTD, k_NTD, v_NTD, heads, seen_TT)
        joined = dense(own["out"], np.concatenate([x_NTD, of_source, of_other], axis=-1))
        return np.where(joined > 0, joined, joined * np.asarray(0.2, joined.dtype))


def _of_way(params: Params, way: int) -> Params:
    if isinstance(params, dict):
        return {key: _of_way(value, way) for key, value in params.items()}
    return params[way]


def _score(hypothesis: Hypothesis) -> float:
    return -hypothesis.score


def _in_reading_order(hypothesis: Hypothesis) -> Hypothesis:
    written = hypothesis.tokens
    tokens = written[::-1] if hypothesis.direction == "r2l" else written
    return dataclasses.replace(hypothesis, tokens=tokens)


def dense(params: Params, x_D: np.ndarray) -> np.ndarray:
    """[..., D] -> [..., F]."""
    return x_D @ params["kernel"] + params["bias"]


def softmax(x_V: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    p_V = np.exp(x_V - x_V.max(axis=-1, keepdims=True))
    return p_V / p_V.sum(axis=-1, keepdims=True)


def normalised(x_D: np.ndarray) -> np.ndarray:
    """To mean 0 and variance 1 over the last axis."""
    mean, variance = x_D.mean(axis=-1, keepdims=True), x_D.var(axis=-1, keepdims=True)
    return (x_D - mean) / np.sqrt(variance + 1e-6)


def lstm(params: Params, x_NTD: np.ndarray) -> np.ndarray:
    """States of all steps, [N, T, H]; see `bidi.models.lstm.LSTM`."""
    gates_NTF = dense(params["input"], x_NTD)
    size = len(params["kernel"])
    state = cell = np.zeros((len(x_NTD), size), x_NTD.dtype)
    states = []
    for t in range(x_NTD.shape[1]):
        gates = gates_NTF[:, t] + state @ params["kernel"]
        write, forget, show = np.split(1 / (1 + np.exp(-gates[:, : 3 * size])), 3, axis=-1)
        cell = forget * cell + write * np.tanh(gates[:, 3 * size :])
        state = show * np.tanh(cell)
        states.append(state)
    return np.stack(states, axis=1)


def attend(
    q_NTD: np.ndarray, k_SD: np.ndarray, v_SD: np.ndarray, heads: int, seen_TS: Any = True
) -> np.ndarray:
    """What attention reads, head by head: [N, T, D]; keys of each pair, or of all alike."""
    read = []
    for q, k, v in zip(*(np.split(x, heads, axis=-1) for x in (q_NTD, k_SD, v_SD)), strict=True):
        logits_TS = q @ k.swapaxes(-1, -2) / np.asarray(np.sqrt(q.shape[-1]), q.dtype)
        read.append(softmax(np.where(seen_TS, logits_TS, -np.inf)) @ v)
    return np.concatenate(read, axis=-1)
