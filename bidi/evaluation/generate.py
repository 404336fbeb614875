"""A trained model at work: texts in, hypotheses out; and log-probabilities of given outputs.

Letters: B batch, P pairs or candidates, W ways, N n-best, S source steps, T target steps,
G beams, V vocabulary.
"""

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bidi import distributed
from bidi.data.streams import Streams
from bidi.data.vocabulary import EOS, FIRST_TEXT_ID, PAD, Vocabulary
from bidi.evaluation.config import EvaluationConfig
from bidi.models.model import Model
from bidi.search.beam_search import BeamSearchResult, Markers, Place, SearchConfig, beam_search

log = logging.getLogger(__name__)

AXIS = "devices"
QUEUE = 8  # sources that are read at once for each row of a search: a row takes one after another


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """One output.

    Attributes:
        tokens: ids in reading order, without markers.
        direction: which stream wrote it, or `joint`; with the model's number where `together` gave
            it one.
        log_prob: of tokens and end marker, by that stream.
        score: `log_prob` over the length penalty.
        finished: whether the stream wrote its end marker.
    """

    tokens: tuple[int, ...]
    direction: str
    log_prob: float
    score: float
    finished: bool


@dataclasses.dataclass(frozen=True)
class Found:
    """What the search found for one source.

    Attributes:
        n_best: the hypotheses by their `direction`, best first; no list is empty, unless the source
            is.
        winner: the best of the lists' best, None for an empty source.
    """

    n_best: dict[str, tuple[Hypothesis, ...]]
    winner: Hypothesis | None

    @property
    def all(self) -> tuple[Hypothesis, ...]:
        """The hypotheses of all lists, without repeats, better ones first."""
        first: dict[tuple[int, ...], Hypothesis] = {}
        together = [hypothesis for listed in self.n_best.values() for hypothesis in listed]
        for hypothesis in sorted(together, key=lambda h: (not h.finished, -h.score)):
            first.setdefault(hypothesis.tokens, hypothesis)
        return tuple(first.values())


def together(found: Sequence[Found]) -> Found:
    """What models found for one source, as if they were one.

    Where two of them write the same direction, all are numbered: `l2r (1)`, `l2r (2)`.
    """
    directions = [direction for one in found for direction in one.n_best]
    if len(set(directions)) < len(directions):
        found = [_numbered(one, number) for number, one in enumerate(found, start=1)]
    winners = [one.winner for one in found if one.winner]
    return Found(
        {direction: listed for one in found for direction, listed in one.n_best.items()},
        max(winners, key=lambda h: (h.finished, h.score), default=None),
    )


def _numbered(found: Found, number: int) -> Found:
    def numbered(hypothesis: Hypothesis) -> Hypothesis:
        return dataclasses.replace(hypothesis, direction=f"{hypothesis.direction} ({number})")

    return Found(
        {f"{name} ({number})": tuple(map(numbered, h)) for name, h in found.n_best.items()},
        found.winner and numbered(found.winner),
    )


@dataclasses.dataclass
class Tally:
    """What a search did.

    Attributes:
        sentences: searched.
        batches: that they were laid in.
        row_steps_run: steps of the batches' loops times their rows, empty rows included.
        row_steps_needed: the same up to where each sentence was done.
        truncated: sources that were cut to length.
    """

    sentences: int = 0
    batches: int = 0
    row_steps_run: int = 0
    row_steps_needed: int = 0
    truncated: int = 0

    def add(self, other: "Tally") -> None:
        """Adds what another search did."""
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


@dataclasses.dataclass(frozen=True)
class Priced:
    """What a model says at each step of given streams.

    Attributes:
        log_probs_PWT: float32, of the labels; beyond the end of a stream it means nothing.
        predicted_PWT: int32, the token that no other is likelier than.
    """

    log_probs_PWT: np.ndarray
    predicted_PWT: np.ndarray


@dataclasses.dataclass(frozen=True)
class LoweredSearch:
    """A search before it is compiled.

    Attributes:
        program: of one batch.
        sentences: that are searched at once.
        steps: rounds of its loop, if each sentence has the greatest length there is.
    """

    program: jax.stages.Lowered
    sentences: int
    steps: int


class Generator:
    """A model, its parameters and its vocabularies.

    Attributes:
        model: the module.
        streams: what the model writes.
        target_vocabulary: of its outputs.
        params: the parameters.
    """

    def __init__(
        self,
        model: Model,
        params: Any,
        streams: Streams,
        source_vocabulary: Vocabulary,
        target_vocabulary: Vocabulary,
        max_source_length: int,
        evaluation: EvaluationConfig,
        devices: Sequence[jax.Device] | None = None,
    ):
        """`max_source_length` in tokens, without marker: longer sources are cut.

        Works on the devices of this process, if no others are given.
        """
        self.streams, self.target_vocabulary = streams, target_vocabulary
        self.params = params
        self.model, self._source_vocabulary = model, source_vocabulary
        self._max_source_length, self._evaluation = max_source_length, evaluation
        self._used = jax.local_devices() if devices is None else list(devices)
        self._devices = len(self._used)
        self._compiled_search = functools.cache(self._compile_search)
        self._compiled_price = functools.cache(self._compile_price)
        self._compiled_score = functools.cache(self._compile_score)

    def with_model(self, model: Model) -> "Generator":
        """The same at work by another module that has these parameters."""
        return Generator(
            model,
            self.params,
            self.streams,
            self._source_vocabulary,
            self.target_vocabulary,
            self._max_source_length,
            self._evaluation,
            self._used,
        )

    def encode(self, sources: Sequence[str]) -> list[np.ndarray]:
        """Texts as the model reads them: int32 [s], cut to length, with end marker."""
        return self._with_end(self._encode(sources), Tally())

    @property
    def score_names(self) -> tuple[str, ...]:
        """What `score` gives of each output."""
        return self.streams.writers

    @property
    def interacts(self) -> bool:
        """Whether the model's streams can read each other."""
        return self.model.interacts

    def search(
        self, sources: Sequence[str], config: SearchConfig, tally: Tally | None = None
    ) -> list[Found]:
        """Searches the best outputs of each source, whatever their order and lengths.

        Like `score` and `price`, it is called by all processes with the same arguments: each does
        its share, on devices of its own, and all get the whole.

        Args:
            sources: texts; an empty one gets no hypotheses.
            config: the search.
            tally: is added to, if given.
        """
        own = Tally()
        found = distributed.in_shares(
            lambda mine: self.search_tokens(self._encode(mine), config, own), sources
        )
        if tally is not None:
            for of_process in distributed.allgather(own):
                tally.add(of_process)
        return found

    def search_tokens(
        self, sources: Sequence[np.ndarray], config: SearchConfig, tally: Tally | None = None
    ) -> list[Found]:
        """`search` of sources that are token ids, int32 [s] without marker, by this process."""
        tally = Tally() if tally is None else tally
        encoded = self._with_end(sources, tally)
        found: list[Found | None] = [None] * len(sources)
        for indices, length, rows, queue in self._queues([len(ids) for ids in encoded]):
            program, *batch = self._search_of(
                [encoded[i] for i in indices], length, rows, queue, config
            )
            result = jax.device_get(program(self.params, *batch))
            tally.batches += 1
            tally.row_steps_run += int(result.steps.sum()) * rows // self._devices
            tally.row_steps_needed += int(result.steps_Q.sum())
            result = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), result.replace(steps=None))
            for row, index in enumerate(indices):
                found[index] = self._found(result, row)
        tally.sentences += len(sources)
        return [one for one in found if one is not None]

    def lower_search(self, source_tokens: int, config: SearchConfig) -> LoweredSearch:
        """The search of a full batch of sources of so many tokens, to be compiled.

        Parameters may be shapes, and devices absent.
        """
        encoded = np.full(source_tokens + 1, EOS, np.int32)
        length = _bucket(len(encoded))
        rows = self._rows(self._evaluation.batch_tokens, length)
        queue = rows * QUEUE
        program, *batch = self._search_of([encoded] * queue, length, rows, queue, config)
        steps = QUEUE * self._steps(length, config)
        return LoweredSearch(program.lower(self.params, *batch), queue, steps)

    def score(
        self,
        sources: Sequence[str],
        candidates: Sequence[Sequence[tuple[int, ...]]],
        interact: bool = False,
    ) -> list[dict[str, np.ndarray]]:
        """Log-probabilities of given outputs, end markers included.

        Each direction prices the whole output for itself. Halves are priced together, each beside
        the other: the sum is the output's own log-probability.

        Args:
            sources: texts.
            candidates: of each source, token ids in reading order, without markers.
            interact: whether whole streams read each other. Both then write the candidate, so that
                each sees labels of its own in the other.

        Returns:
            For each source and name of `score_names` float32 [candidates of the source].

        Raises:
            ValueError: `interact` is asked of a model without interaction.
        """
        if interact and not self.interacts:
            raise ValueError("interact = True, but this model's streams do not read each other")
        return distributed.in_shares(
            functools.partial(self._score, interact=interact), sources, candidates
        )

    def _score(
        self,
        sources: Sequence[str],
        candidates: Sequence[Sequence[tuple[int, ...]]],
        interact: bool,
    ) -> list[dict[str, np.ndarray]]:
        encoded = self.encode(sources)
        most = _round_up(max((len(listed) for listed in candidates), default=1), 4)
        scores: list[dict[str, np.ndarray]] = [{} for _ in sources]
        # A row is as long as its source and its longest candidate.
        lengths = [
            max(len(ids), *(self.streams.length(len(tokens)) for tokens in listed), 1)
            for ids, listed in zip(encoded, candidates, strict=True)
        ]
        for indices, length, rows in self._batches(lengths, streams=most):
            batch = self._source_batch([encoded[i] for i in indices], length, rows)
            streams = self._candidate_streams([candidates[i] for i in indices], most, length, rows)
            scores_BPW = jax.device_get(
                self._compiled_score(interact)(
                    self.params, self._divided(batch), self._divided(streams)
                )
            ).reshape(rows, most, -1)
            if self.streams.layout == "halves":
                scores_BPW = scores_BPW.sum(axis=-1, keepdims=True)
            for row, index in enumerate(indices):
                for way, name in enumerate(self.score_names):
                    scores[index][name] = scores_BPW[row, : len(candidates[index]), way]
        return scores

    def price(
        self,
        sources: Sequence[str],
        outputs: Sequence[Sequence[tuple[int, ...]]],
        pairs: Sequence[tuple[int, ...]],
        interact: bool,
    ) -> list[Priced]:
        """Prices the labels of given outputs one by one, each stream beside a given other.

        Args:
            sources: texts.
            outputs: as many of each source, token ids in reading order, without markers.
            pairs: P pairs of streams, each the number of the output that each way's stream writes.
            interact: whether the streams of a pair read each other.
        """
        price = functools.partial(self._price, pairs=pairs, interact=interact)
        return distributed.in_shares(price, sources, outputs)

    def _price(
        self,
        sources: Sequence[str],
        outputs: Sequence[Sequence[tuple[int, ...]]],
        pairs: Sequence[tuple[int, ...]],
        interact: bool,
    ) -> list[Priced]:
        encoded = self.encode(sources)
        pairs_PW = np.array(pairs)
        ways_W = np.arange(pairs_PW.shape[1])
        priced: list[Priced | None] = [None] * len(sources)
        lengths = [
            max(len(ids), *(self.streams.length(len(tokens)) for tokens in listed))
            for ids, listed in zip(encoded, outputs, strict=True)
        ]
        for indices, length, rows in self._batches(lengths, streams=len(pairs)):
            batch = self._source_batch([encoded[i] for i in indices], length, rows)
            of_outputs = self._candidate_streams(
                [outputs[i] for i in indices], len(outputs[0]), length, rows
            )
            streams = {key: value[:, pairs_PW, ways_W] for key, value in of_outputs.items()}
            log_probs_BPWT, predicted_BPWT = (
                x.reshape(rows, *x.shape[2:])
                for x in jax.device_get(
                    self._compiled_price(interact)(
                        self.params, self._divided(batch), self._divided(streams)
                    )
                )
            )
            for row, index in enumerate(indices):
                priced[index] = Priced(log_probs_BPWT[row], predicted_BPWT[row])
        return [one for one in priced if one is not None]

    def text(self, hypothesis: Hypothesis | None) -> str:
        """A hypothesis as text; the empty one for none."""
        return "" if hypothesis is None else self.target_vocabulary.decode(hypothesis.tokens)

    def _encode(self, sources: Sequence[str]) -> list[np.ndarray]:
        return [self._source_vocabulary.encode(source) for source in sources]

    def _with_end(self, sources: Sequence[np.ndarray], tally: Tally) -> list[np.ndarray]:
        """The sources as the model reads them: cut to length, then EOS."""
        limit = self._max_source_length
        tally.truncated += sum(len(ids) > limit for ids in sources)
        return [np.append(ids[:limit], np.int32(EOS)) for ids in sources]

    def _queues(self, lengths: Sequence[int]) -> Iterator[tuple[np.ndarray, int, int, int]]:
        """Indices of sources of about one length, that length, rows, and sources of the queue."""
        for members, length in self._buckets(lengths):
            rows = self._rows(len(members), length)
            queue = rows * min(QUEUE, _power_of_two(len(members) / rows))
            for start in range(0, len(members), queue):
                yield members[start : start + queue], length, rows, queue

    def _batches(
        self, lengths: Sequence[int], streams: int
    ) -> Iterator[tuple[np.ndarray, int, int]]:
        """Indices of rows of about one length, that length, and the batch's rows: few shapes."""
        for members, length in self._buckets(lengths):
            rows = self._rows(len(members), length * streams)
            for start in range(0, len(members), rows):
                yield members[start : start + rows], length, rows

    def _buckets(self, lengths: Sequence[int]) -> Iterator[tuple[np.ndarray, int]]:
        """Indices of sources of about one length, in the order of their lengths."""
        order = np.argsort(lengths, kind="stable")
        buckets = np.array([_bucket(lengths[i]) for i in order])
        for length in np.unique(buckets):
            yield order[buckets == length], int(length)

    def _rows(self, members: int, tokens: int) -> int:
        """How many rows of so many tokens a batch has, a multiple of the devices."""
        most = self._evaluation.batch_tokens // tokens
        # A few sources need no full batch; powers of two keep the shapes few.
        return _round_up(min(most, _power_of_two(members)), self._devices)

    def _source_batch(
        self, encoded: Sequence[np.ndarray], length: int, rows: int
    ) -> dict[str, np.ndarray]:
        source_BS = np.full((rows, length), PAD, np.int32)
        segments_BS = np.zeros((rows, length), np.int32)
        for row, ids in enumerate(encoded):
            source_BS[row, : len(ids)] = ids
            segments_BS[row, : len(ids)] = 1
        positions_BS = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
        return {
            "source": source_BS,
            "source_segments": segments_BS,
            "source_positions": positions_BS,
        }

    def _candidate_streams(
        self,
        candidates: Sequence[Sequence[tuple[int, ...]]],
        most: int,
        length: int,
        rows: int,
    ) -> dict[str, np.ndarray]:
        shape = (rows, most, self._ways, length)
        streams = {
            "inputs": np.full(shape, PAD, np.int32),
            "labels": np.full(shape, PAD, np.int32),
            "weights": np.zeros(shape, np.float32),
        }
        for row, listed in enumerate(candidates):
            for place, tokens in enumerate(listed):
                for key, value_TW in self.streams.tokens(np.array(tokens, np.int32)).items():
                    streams[key][row, place, :, : len(value_TW)] = value_TW.T
        return streams

    def _search_of(
        self,
        encoded: Sequence[np.ndarray],
        length: int,
        rows: int,
        queue: int,
        config: SearchConfig,
    ) -> tuple[Any, Any, Any]:
        """A program, and what it takes beside the parameters."""
        max_length_Q = np.zeros(queue, np.int32)
        # EOS is not counted: an empty source has nothing to say.
        max_length_Q[: len(encoded)] = config.max_length(
            np.array([len(ids) - 1 for ids in encoded])
        )
        steps = self._steps(length, config)
        program = self._compiled_search(config, rows // self._devices, steps)
        batch = self._source_batch(encoded, length, queue)
        return program, self._divided(batch), self._divided(max_length_Q)

    def _steps(self, length: int, config: SearchConfig) -> int:
        """Of a stream's search, for sources of this length with their end marker."""
        return config.stream_steps(int(config.max_length(np.array(length - 1))), self._ways)

    def _divided(self, tree: Any) -> Any:
        """[B, ...] -> [devices, B / devices, ...]."""
        return jax.tree.map(lambda x: x.reshape(self._devices, -1, *x.shape[1:]), tree)

    @property
    def _ways(self) -> int:
        return len(self.streams.directions)

    @functools.cached_property
    def _markers(self) -> Markers:
        size = self.target_vocabulary.size
        allowed_WV = np.tile(np.arange(size) >= FIRST_TEXT_ID, (len(self.streams.ends), 1))
        for way, end in enumerate(self.streams.ends):
            allowed_WV[way, end] = True
        return Markers(self.streams.directions, self.streams.starts, self.streams.ends, allowed_WV)

    def _divided_over_devices(self, function: Callable[..., Any]) -> Any:
        """Of parameters and batches; other processes' devices do work of their own."""
        return jax.pmap(function, axis_name=AXIS, in_axes=(None, 0, 0), devices=self._used)

    def _compile_search(self, config: SearchConfig, rows: int, steps: int) -> Any:
        coupling = config.make_coupling(self._ways)
        interact = config.coupling != "none"
        combined = coupling.hypotheses if config.coupling == "product" else None

        def search(params: Any, batch: dict[str, jax.Array], max_length_Q: jax.Array) -> Any:
            apply = functools.partial(self.model.apply, {"params": params})
            source = apply(batch, examples=1, method="start")

            def decode_step(cache: Any, tokens_BPW: jax.Array, place: Place) -> Any:
                # Without a queue every row keeps its sentence.
                at_work = (
                    source
                    if rows == len(max_length_Q)
                    else jax.tree.map(lambda leaf: leaf[place.sentence_B], source)
                )
                return apply(
                    at_work,
                    cache,
                    tokens_BPW,
                    place.step_B,
                    place.origins_BPWT,
                    interact,
                    combined,
                    method="decode_step",
                )

            return beam_search(
                decode_step,
                apply(rows, coupling.pairs, steps, combined, method="empty_cache"),
                markers=self._markers,
                max_length_Q=max_length_Q,
                rows=rows,
                steps=steps,
                config=config,
            )

        return self._divided_over_devices(search)

    def _compile_score(self, interact: bool) -> Any:
        interact = interact or self.streams.layout == "halves"

        def score(params: Any, batch: dict[str, jax.Array], streams: dict[str, jax.Array]) -> Any:
            log_probs_BPWTV = self._log_probs(params, batch, streams, interact)
            log_probs_BPWT = _of_labels(log_probs_BPWTV, streams["labels"])
            return (log_probs_BPWT * streams["weights"]).sum(axis=-1)

        return self._divided_over_devices(score)

    def _compile_price(self, interact: bool) -> Any:
        def price(params: Any, batch: dict[str, jax.Array], streams: dict[str, jax.Array]) -> Any:
            log_probs_BPWTV = self._log_probs(params, batch, streams, interact)
            predicted_BPWT = log_probs_BPWTV.argmax(axis=-1)
            return _of_labels(log_probs_BPWTV, streams["labels"]), predicted_BPWT

        return self._divided_over_devices(price)

    def _log_probs(
        self,
        params: Any,
        batch: dict[str, jax.Array],
        streams: dict[str, jax.Array],
        interact: bool,
    ) -> jax.Array:
        """Log-probabilities at each step of whole streams, [B, P, W, T, V]."""
        apply = functools.partial(self.model.apply, {"params": params})
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

    def _found(self, result: BeamSearchResult, row: int) -> Found:
        n_best: dict[str, tuple[Hypothesis, ...]] = {}
        for beam, writer in enumerate(self.streams.writers):
            n_best[writer] = tuple(
                Hypothesis(
                    tokens=tuple(
                        int(token)
                        for token in result.tokens_QGNT[row, beam, n][
                            : result.lengths_QGN[row, beam, n]
                        ]
                    ),
                    direction=writer,
                    log_prob=float(result.log_probs_QGN[row, beam, n]),
                    score=float(result.scores_QGN[row, beam, n]),
                    finished=bool(result.finished_QGN[row, beam, n]),
                )
                for n in range(result.valid_QGN.shape[-1])
                if result.valid_QGN[row, beam, n]
            )
        best = n_best[self.streams.writers[int(result.winner_Q[row])]]
        return Found(n_best, best[0] if best else None)


def _of_labels(log_probs_BPWTV: jax.Array, labels_BPWT: jax.Array) -> jax.Array:
    return jnp.take_along_axis(log_probs_BPWTV, labels_BPWT[..., None], axis=-1)[..., 0]


def _bucket(length: int) -> int:
    """Lengths that rows are padded to: multiples of 8, from 64 on in steps of an eighth or less."""
    step = max(8, 1 << max(int(length - 1).bit_length() - 3, 0))
    return _round_up(length, step)


def _power_of_two(number: float) -> int:
    """The smallest one that is no less."""
    return 1 << (math.ceil(number) - 1).bit_length()


def _round_up(number: int, multiple: int) -> int:
    return max(multiple, -(-number // multiple) * multiple)
