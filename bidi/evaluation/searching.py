"""Searches: sources laid in queues, searched by compiled programs, and what these find.

Letters: B batch, P pairs, Q sentences of a queue, W ways, N n-best, T target steps, G beams,
V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from bidi.data.streams import Streams
from bidi.evaluation.batching import QUEUE, Batching, SearchShape, source_batch
from bidi.evaluation.found import Found, Hypothesis, Tally
from bidi.evaluation.reading import AtWork, read_sources
from bidi.models.model import Model, decoding_variables
from bidi.models.slots import Place, Room
from bidi.search.beam_search import BeamSearchResult, beam_search
from bidi.search.config import SearchConfig
from bidi.search.coupling import Coupling
from bidi.search.hypotheses import Markers
from bidi.search.slots import likely_room, whole_room
from bidi.tokens import EOS, FIRST_TEXT_ID

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


class Searching:
    """A model that searches outputs; `Generator.search` says what.

    Its sources are token ids as the model reads them, int32 [s].
    """

    def __init__(
        self,
        model: Model,
        params: Any,
        streams: Streams,
        vocabulary_size: int,
        batching: Batching,
    ):
        """Makes programs for `search`, compiled where they are first used."""
        self._model, self._params, self._streams = model, params, streams
        self._vocabulary_size, self._batching = vocabulary_size, batching
        self._compiled_search = functools.cache(self._compile_search)

    def search(
        self,
        sources: Sequence[np.ndarray],
        config: SearchConfig,
        tally: Tally,
        winner_only: bool,
    ) -> list[Found]:
        """Of each source what is found, whatever their order and lengths."""
        asked = _Asked(config, winner_only, likely_room)
        found = self._search_all(sources, asked, tally, self._batching)
        lost = [index for index in range(len(sources)) if index not in found]
        asked = dataclasses.replace(asked, room_of=whole_room)
        again = self._search_all([sources[i] for i in lost], asked, tally, self._with_room(config))
        found |= {lost[place]: one for place, one in again.items()}
        return [found[index] for index in range(len(sources))]

    def lower(self, source_length: int, config: SearchConfig) -> LoweredSearch:
        """The search of a full batch of sources of so many tokens, to be compiled.

        Parameters may be shapes, and devices absent.
        """
        source = np.full(source_length, EOS, np.int32)
        shape = self._batching.full(source_length)
        asked = _Asked(config, winner_only=False, room_of=likely_room)
        program, *batch = self._search_of([source] * shape.sources, shape, asked)
        steps = QUEUE * self._steps(shape.length, config)
        variables = jax.eval_shape(self._prepared, self._params)
        return LoweredSearch(program.lower(variables, *batch), variables, shape.sources, steps)

    def _with_room(self, config: SearchConfig) -> Batching:
        """The batching with so many fewer rows that `whole_room` for them takes no more memory.

        But where a device has fewer rows than there are streams: one is the least.
        """
        coupling = config.make_coupling(self._ways)
        pairs, combined = coupling.pairs, coupling.combined
        # `likely_room` is for the steps of one stream at least.
        streams = pairs if self._model.keeps_pairs else combined or pairs
        fewer = self._batching.batch_tokens // streams
        return dataclasses.replace(self._batching, batch_tokens=fewer)

    def _search_all(
        self,
        sources: Sequence[np.ndarray],
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
        for members, length in batching.groups([len(ids) for ids in sources]):
            steps, former_steps = self._steps(length, asked.config), steps
            if steps > former_steps:
                # They go first: their outputs are longer than their own lengths tell.
                members, lost = np.append(members, np.array(lost, np.int64)), []
            for indices, shape in batching.queues(members, length):
                found |= self._search_queue(sources, indices, shape, asked, tally)
            lost_here = [index for index in members.tolist() if index not in found]
            tally.searched_again += len(lost_here)
            lost += lost_here
        return found

    def _search_queue(
        self,
        sources: Sequence[np.ndarray],
        indices: np.ndarray,
        shape: SearchShape,
        asked: _Asked,
        tally: Tally,
    ) -> dict[int, Found]:
        """`_search_all` of these sources at once."""
        program, *batch = self._search_of([sources[i] for i in indices], shape, asked)
        result = jax.device_get(program(self._variables, *batch))
        tally.batches += 1
        tally.row_steps_run += int(result.steps.sum()) * shape.rows // self._batching.device_count
        tally.row_steps_needed += int(result.steps_Q[~result.lost_Q].sum())
        result = self._batching.joined(result.replace(steps=None))
        found = {}
        for row, index in enumerate(indices.tolist()):
            if not result.lost_Q[row]:
                of_source = self._found(result, row)
                found[index] = of_source.winner_alone if asked.winner_only else of_source
        return found

    def _search_of(
        self, sources: Sequence[np.ndarray], shape: SearchShape, asked: _Asked
    ) -> tuple[Any, Any, Any]:
        """A program, and what it takes beside the variables."""
        max_length_Q = np.zeros(shape.sources, np.int32)
        # EOS is not counted: an empty source has nothing to say.
        max_length_Q[: len(sources)] = asked.config.max_length(
            np.array([len(ids) - 1 for ids in sources])
        )
        steps = self._steps(shape.length, asked.config)
        rows_each = shape.rows // self._batching.device_count
        program = self._compiled_search(asked, rows_each, steps)
        batch = source_batch(sources, shape.length, shape.sources)
        return program, self._batching.divided(batch), self._batching.divided(max_length_Q)

    def _steps(self, length: int, config: SearchConfig) -> int:
        """Of a stream's search, for sources of this length with their end marker."""
        return config.stream_steps(int(config.max_length(np.array(length - 1))), self._ways)

    @property
    def _ways(self) -> int:
        return len(self._streams.directions)

    @functools.cached_property
    def _variables(self) -> Any:
        """What programs of a search are called with first.

        Not made by a program, which would copy parameters that stay as they are.
        """
        return self._prepared(self._params)

    def _prepared(self, params: Any) -> Any:
        return decoding_variables(self._model, params, self._batching.devices[0].platform)

    @functools.cached_property
    def _markers(self) -> Markers:
        streams, size = self._streams, self._vocabulary_size
        allowed_WV = np.tile(np.arange(size) >= FIRST_TEXT_ID, (len(streams.ends), 1))
        for way, end in enumerate(streams.ends):
            allowed_WV[way, end] = True
        return Markers(streams.directions, streams.starts, streams.ends, allowed_WV)

    def _compile_search(self, asked: _Asked, rows: int, steps: int) -> Any:
        # Not `self` in the program: jax keeps for good what it compiled, and would the parameters.
        model, markers = self._model, self._markers
        coupling = asked.config.make_coupling(self._ways)
        interact = asked.config.coupling != "none"
        room = asked.room_of(coupling, steps, model.keeps_pairs)

        def search(variables: Any, batch: dict[str, jax.Array], max_length_Q: jax.Array) -> Any:
            apply = functools.partial(model.apply, variables)
            sources = read_sources(model, variables, batch, max_length_Q > 0, rows)

            def decode_step(carried: Any, tokens_BPW: jax.Array, place: Place) -> Any:
                at_work, cache = carried
                # Without a queue every row keeps its sentence.
                if rows < len(max_length_Q):
                    at_work = at_work.follow(sources, place.sentence_B)
                prices, cache = apply(
                    at_work.source,
                    cache,
                    tokens_BPW,
                    place,
                    interact,
                    coupling.combined,
                    method="decode_step",
                )
                return prices, (at_work, cache)

            cache = apply(rows, coupling.pairs, room, coupling.combined, method="empty_cache")
            return beam_search(
                decode_step,
                (AtWork.first(sources, rows), cache),
                markers=markers,
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
        for beam, writer in enumerate(self._streams.writers):
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
        best = n_best[self._streams.writers[int(result.winner_Q[row])]]
        return Found(n_best, best[0] if best else None)
