"""A trained model at work: texts in, hypotheses out; and log-probabilities of given outputs.

Letters: B batch, P pairs, Q sentences of a queue, W ways, N n-best, T target steps, G beams,
V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from bidi import distributed
from bidi.data.streams import Streams
from bidi.data.vocabulary import EOS, FIRST_TEXT_ID, Vocabulary
from bidi.evaluation.batching import QUEUE, Batching, SearchShape, source_batch, usual_tokens
from bidi.evaluation.config import EvaluationConfig
from bidi.evaluation.found import Found, Hypothesis, Tally
from bidi.evaluation.pricing import Priced, Pricing
from bidi.evaluation.reading import AtWork, read_sources
from bidi.models.model import Model, decoding_variables
from bidi.models.slots import Room
from bidi.search.beam_search import BeamSearchResult, Markers, Place, beam_search
from bidi.search.config import SearchConfig
from bidi.search.coupling import Coupling
from bidi.search.slots import likely_room, whole_room

RoomOf = Callable[[Coupling, int, bool], Room]  # `likely_room` or `whole_room`


@dataclasses.dataclass(frozen=True)
class _Asked:
    """What the program of a search depends on, beside shapes.

    Attributes:
        config: the search.
        winner_only: see `beam_search`.
        room_of: gives the room of the cache.
    """

    config: SearchConfig
    winner_only: bool
    room_of: RoomOf


@dataclasses.dataclass(frozen=True)
class LoweredSearch:
    """A search before it is compiled.

    Attributes:
        program: of one batch.
        variables: the shapes of what it is called with first, see `decoding_variables`.
        sentences: that are searched at once.
        steps: rounds of its loop, if each sentence has the greatest length there is.
    """

    program: jax.stages.Lowered
    variables: Any
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
        used = jax.local_devices() if devices is None else devices
        tokens = evaluation.batch_tokens
        if tokens is None:
            tokens = usual_tokens(used)
        self._batching = Batching(tokens, tuple(used))
        self._pricing = Pricing(model, params, streams, self._batching)
        self._compiled_search = functools.cache(self._compile_search)

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
            self._batching.used,
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
        self,
        sources: Sequence[str],
        config: SearchConfig,
        tally: Tally | None = None,
        winner_only: bool = False,
    ) -> list[Found]:
        """Searches the best outputs of each source, whatever their order and lengths.

        Like `score` and `price`, it is called by all processes with the same arguments: each does
        its share, on devices of its own, and all get the whole.

        Args:
            sources: texts; an empty one gets no hypotheses.
            config: the search.
            tally: is added to, if given.
            winner_only: whether nothing but the winner is found. A search that would find more, of
                a second beam or by `n_best`, is done sooner.
        """
        own = Tally()
        found = distributed.in_shares(
            lambda mine: self.search_tokens(self._encode(mine), config, own, winner_only), sources
        )
        if tally is not None:
            for of_process in distributed.allgather(own):
                tally.add(of_process)
        return found

    def search_tokens(
        self,
        sources: Sequence[np.ndarray],
        config: SearchConfig,
        tally: Tally | None = None,
        winner_only: bool = False,
    ) -> list[Found]:
        """`search` of sources that are token ids, int32 [s] without marker, by this process."""
        tally = Tally() if tally is None else tally
        encoded = self._with_end(sources, tally)
        tally.sentences += len(sources)
        asked = _Asked(config, winner_only, likely_room)
        found = self._search_encoded(encoded, asked, tally, self._batching)
        lost = [index for index in range(len(encoded)) if index not in found]
        asked = dataclasses.replace(asked, room_of=whole_room)
        again = self._search_encoded(
            [encoded[i] for i in lost], asked, tally, self._with_room(config)
        )
        found |= {lost[place]: one for place, one in again.items()}
        return [found[index] for index in range(len(encoded))]

    def _with_room(self, config: SearchConfig) -> Batching:
        """The batching with so many fewer rows that `whole_room` for them takes no more memory.

        But where a device has fewer rows than there are streams: one is the least.
        """
        coupling = config.make_coupling(self._ways)
        pairs, combined = coupling.pairs, coupling.combined
        # `likely_room` is for the steps of one stream at least.
        streams = pairs if self.model.keeps_pairs else combined or pairs
        fewer = self._batching.batch_tokens // streams
        return dataclasses.replace(self._batching, batch_tokens=fewer)

    def _search_encoded(
        self,
        encoded: Sequence[np.ndarray],
        asked: _Asked,
        tally: Tally,
        batching: Batching,
    ) -> dict[int, Found]:
        """What is found by the place of the source, but where there was too little room.

        Sources that there is too little room for are searched again with longer ones, if their
        outputs may be longer: they have more of it.
        """
        found: dict[int, Found] = {}
        lost: list[int] = []
        steps = 0
        for members, length in batching.groups([len(ids) for ids in encoded]):
            steps, former_steps = self._steps(length, asked.config), steps
            if steps > former_steps:
                # They go first: their outputs are longer than their own lengths tell.
                members, lost = np.append(members, np.array(lost, np.int64)), []
            for indices, shape in batching.queues(members, length):
                found |= self._search_queue(encoded, indices, shape, asked, tally)
            lost_here = [index for index in members.tolist() if index not in found]
            tally.searched_again += len(lost_here)
            lost += lost_here
        return found

    def _search_queue(
        self,
        encoded: Sequence[np.ndarray],
        indices: np.ndarray,
        shape: SearchShape,
        asked: _Asked,
        tally: Tally,
    ) -> dict[int, Found]:
        """`_search_encoded` of these sources at once."""
        program, *batch = self._search_of([encoded[i] for i in indices], shape, asked)
        result = jax.device_get(program(self._variables, *batch))
        tally.batches += 1
        tally.row_steps_run += int(result.steps.sum()) * shape.rows // self._batching.devices
        tally.row_steps_needed += int(result.steps_Q[~result.lost_Q].sum())
        result = self._batching.joined(result.replace(steps=None))
        found = {}
        for row, index in enumerate(indices.tolist()):
            if not result.lost_Q[row]:
                of_source = self._found(result, row)
                found[index] = of_source.winner_alone if asked.winner_only else of_source
        return found

    def lower_search(self, source_tokens: int, config: SearchConfig) -> LoweredSearch:
        """The search of a full batch of sources of so many tokens, to be compiled.

        Parameters may be shapes, and devices absent.
        """
        encoded = np.full(source_tokens + 1, EOS, np.int32)
        shape = self._batching.full(len(encoded))
        asked = _Asked(config, winner_only=False, room_of=likely_room)
        program, *batch = self._search_of([encoded] * shape.sources, shape, asked)
        steps = QUEUE * self._steps(shape.length, config)
        make = functools.partial(decoding_variables, self.model)
        variables = jax.eval_shape(make, self.params)
        return LoweredSearch(program.lower(variables, *batch), variables, shape.sources, steps)

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
            lambda mine, theirs: self._pricing.score(self.encode(mine), theirs, interact),
            sources,
            candidates,
        )

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
        return distributed.in_shares(
            lambda mine, theirs: self._pricing.price(self.encode(mine), theirs, pairs, interact),
            sources,
            outputs,
        )

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

    def _search_of(
        self, encoded: Sequence[np.ndarray], shape: SearchShape, asked: _Asked
    ) -> tuple[Any, Any, Any]:
        """A program, and what it takes beside the variables."""
        max_length_Q = np.zeros(shape.sources, np.int32)
        # EOS is not counted: an empty source has nothing to say.
        max_length_Q[: len(encoded)] = asked.config.max_length(
            np.array([len(ids) - 1 for ids in encoded])
        )
        steps = self._steps(shape.length, asked.config)
        rows_each = shape.rows // self._batching.devices
        program = self._compiled_search(asked, rows_each, steps)
        batch = source_batch(encoded, shape.length, shape.sources)
        return program, self._batching.divided(batch), self._batching.divided(max_length_Q)

    def _steps(self, length: int, config: SearchConfig) -> int:
        """Of a stream's search, for sources of this length with their end marker."""
        return config.stream_steps(int(config.max_length(np.array(length - 1))), self._ways)

    @property
    def _ways(self) -> int:
        return len(self.streams.directions)

    @functools.cached_property
    def _variables(self) -> Any:
        """What programs of a search are called with first.

        Not made by a program, which would copy parameters that stay as they are.
        """
        return decoding_variables(self.model, self.params)

    @functools.cached_property
    def _markers(self) -> Markers:
        size = self.target_vocabulary.size
        allowed_WV = np.tile(np.arange(size) >= FIRST_TEXT_ID, (len(self.streams.ends), 1))
        for way, end in enumerate(self.streams.ends):
            allowed_WV[way, end] = True
        return Markers(self.streams.directions, self.streams.starts, self.streams.ends, allowed_WV)

    def _compile_search(self, asked: _Asked, rows: int, steps: int) -> Any:
        coupling = asked.config.make_coupling(self._ways)
        interact = asked.config.coupling != "none"
        room = asked.room_of(coupling, steps, self.model.keeps_pairs)

        def search(variables: Any, batch: dict[str, jax.Array], max_length_Q: jax.Array) -> Any:
            apply = functools.partial(self.model.apply, variables)
            sources = read_sources(self.model, variables, batch, max_length_Q > 0, rows)

            def decode_step(carried: Any, tokens_BPW: jax.Array, place: Place) -> Any:
                at_work, cache = carried
                # Without a queue every row keeps its sentence.
                if rows < len(max_length_Q):
                    at_work = at_work.follow(sources, place.sentence_B)
                prices, cache = apply(
                    at_work.source,
                    cache,
                    tokens_BPW,
                    place.step_B,
                    place.pairs,
                    place.streams,
                    interact,
                    coupling.combined,
                    method="decode_step",
                )
                return prices, (at_work, cache)

            cache = apply(rows, coupling.pairs, room, coupling.combined, method="empty_cache")
            return beam_search(
                decode_step,
                (AtWork.first(sources, rows), cache),
                markers=self._markers,
                max_length_Q=max_length_Q,
                rows=rows,
                steps=steps,
                room=room,
                config=asked.config,
                winner_only=asked.winner_only,
            )

        return self._batching.program(search)

    def _found(self, result: BeamSearchResult, row: int) -> Found:
        n_best: dict[str, tuple[Hypothesis, ...]] = {}
        for beam, writer in enumerate(self.streams.writers):
            n_best[writer] = tuple(
                Hypothesis(
                    tokens=tuple(
                        result.tokens_QGNT[
                            row, beam, n, : result.lengths_QGN[row, beam, n]
                        ].tolist()
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
