"""Searches to compare with the oracle: their settings, their compiled run, what must be equal.

B rows, Q sentences in the queue, P pairs, W ways, N n-best, T steps, V vocabulary.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from bidi.models.slots import Room
from bidi.search.beam_search import BeamSearchResult, Markers, beam_search
from bidi.search.config import SearchConfig
from bidi.search.coupling import Coupling
from bidi.search.slots import whole_room
from tests.search import joint_oracle, oracle, tables
from tests.search.tables import Sentence

BATCH = 8
BOTH, L2R, R2L = ("l2r", "r2l"), ("l2r",), ("r2l",)


@dataclasses.dataclass(frozen=True)
class Case:
    """One compiled search: `texts` is how many text ids each way may write.

    `steps`: the greatest of the sentences' maximum lengths.

    Markers `swap`: ids 0 pad, 1 and 2 the markers, then text; `tags`: text from id 1, then the two
    start tags and the shared end, so that the end marker comes first at ties in one and last in the
    other.
    """

    coupling: str
    beam: int
    steps: int
    n_best: int = 1
    ways: tuple[str, ...] = ("l2r", "r2l")
    markers: str = "swap"
    texts: tuple[int, ...] = (2, 2)
    penalty: str = "gnmt"
    alpha: float = 0.6
    min_length: int = 1
    rank_unfinished: bool = False
    partner_weights: str = "equal"

    @property
    def size(self) -> int:
        return 1 + max(self.texts) + {"swap": 2, "tags": 3}[self.markers]

    @property
    def start(self) -> tuple[int, ...]:
        starts = {"swap": (1, 2), "tags": (self.size - 3, self.size - 2)}[self.markers]
        return tuple(starts[way == "r2l"] for way in self.ways)

    @property
    def end(self) -> tuple[int, ...]:
        ends = {"swap": (2, 1), "tags": (self.size - 1, self.size - 1)}[self.markers]
        return tuple(ends[way == "r2l"] for way in self.ways)

    @property
    def allowed(self) -> tuple[tuple[int, ...], ...]:
        first = {"swap": 3, "tags": 1}[self.markers]
        return tuple(
            (*range(first, first + texts), end)
            for texts, end in zip(self.texts, self.end, strict=False)
        )

    def search_markers(self) -> Markers:
        allowed_WV = np.zeros((len(self.ways), self.size), bool)
        for way, tokens in enumerate(self.allowed):
            allowed_WV[way, list(tokens)] = True
        return Markers(self.ways, self.start, self.end, allowed_WV)

    @property
    def writers(self) -> tuple[str, ...]:
        return ("joint",) if self.coupling == "joint" else self.ways

    @property
    def definition(self):
        return joint_oracle if self.coupling == "joint" else oracle

    @property
    def stream_steps(self) -> int:
        return self.config().stream_steps(self.steps, len(self.ways))

    @property
    def search_coupling(self) -> Coupling:
        return self.config().make_coupling(len(self.ways))

    @property
    def whole_room(self) -> Room:
        return whole_room(self.search_coupling, self.stream_steps, keeps_pairs=True)

    def config(self) -> SearchConfig:
        return SearchConfig(
            coupling=self.coupling,
            partner_weights=self.partner_weights,
            beam_size=self.beam,
            n_best=self.n_best,
            length_penalty=self.penalty,
            alpha=self.alpha,
            min_length=self.min_length,
            rank_unfinished=self.rank_unfinished,
        )

    def task(self, max_length: int) -> oracle.Task:
        return oracle.Task(
            ways=self.ways,
            end=self.end,
            allowed=self.allowed,
            max_length=max_length,
            coupling=self.coupling,
            partner_weights=self.partner_weights,
            hypotheses=self.beam // 2 if self.coupling == "paired" else self.beam,
            n_best=self.n_best,
            length_penalty=self.penalty,
            alpha=self.alpha,
            min_length=self.min_length,
            rank_unfinished=self.rank_unfinished,
        )

    def table(self, sentence: Sentence) -> oracle.LogProbs:
        return tables.log_probs(sentence, self.start, self.end, self.size)

    def reference(self, sentence: Sentence) -> oracle.Answer:
        return self.definition.reference_search(
            self.table(sentence), self.task(sentence.max_length)
        )

    def everything(self, sentence: Sentence) -> oracle.Answer:
        return self.definition.enumerate_all(self.table(sentence), self.task(sentence.max_length))

    def sentences(self) -> st.SearchStrategy[list[Sentence]]:
        """Batches whose tables are all ties, mostly ties or few ties; unquantised for `product`."""
        sentence = st.builds(
            Sentence,
            seed=st.integers(0, 2**32 - 1),
            levels=st.just(0) if self.coupling == "product" else st.sampled_from((1, 2, 3, 8, 32)),
            end_cost=st.sampled_from((0, 1, 3, 8, 40)),
            max_length=st.sampled_from(range(self.steps, 0, -1)),
        )
        return st.lists(sentence, min_size=BATCH, max_size=BATCH)


@functools.cache
def compiled(case: Case):
    step_fn = tables.decode_step(
        case.end,
        case.size,
        case.stream_steps,
        combined=case.search_coupling.combined,
        partners=case.coupling != "none",
    )
    return jit_search(case, step_fn, case.search_markers())


def jit_search(case: Case, step_fn, markers: Markers):
    # Of so many pairs each search takes longer than the optimiser (left out by xla_flags.py).
    optimise = {"xla_backend_optimization_level": 1} if case.search_coupling.pairs > 50 else None
    return jax.jit(
        functools.partial(
            beam_search, step_fn, markers=markers, steps=case.stream_steps, config=case.config()
        ),
        static_argnames=("rows", "room", "winner_only"),
        compiler_options=optimise,
    )


def search(
    case: Case,
    sentences: list[Sentence],
    run=None,
    rows: int | None = None,
    room: Room | None = None,
    garbage: int = 0,
    winner_only: bool = False,
) -> BeamSearchResult:
    """Searches a queue of sentences, each in a row of its own unless `rows` is given.

    `room`: of the cache, for all there can be unless given. `garbage`: seed of what the cache holds
    before anything is written.
    """
    rows = len(sentences) if rows is None else rows
    room = case.whole_room if room is None else room
    cache = tables.cache(sentences, rows, len(case.ways), room, case.stream_steps, garbage)
    max_length_Q = np.array([s.max_length for s in sentences], np.int32)
    run = run or compiled(case)
    shape = {"rows": rows, "room": room, "winner_only": winner_only}
    return jax.device_get(run(cache, max_length_Q=max_length_Q, **shape))


def assert_sentence(result: BeamSearchResult, q: int, case: Case, answer: oracle.Answer) -> None:
    """Sentence q of the result is the oracle's answer."""
    exact = case.coupling != "product"
    for w, expected in enumerate(answer.n_best):
        count = len(expected)
        valid = [n < count for n in range(case.n_best)]
        assert result.valid_QGN[q, w].tolist() == valid
        assert result.scores_QGN[q, w, count:].tolist() == [-np.inf] * (case.n_best - count)
        assert not result.finished_QGN[q, w, count:].any()
        for n, hypothesis in enumerate(expected):
            reading = hypothesis.reading(case.writers[w])
            padding = result.tokens_QGNT.shape[-1] - len(reading)
            assert result.tokens_QGNT[q, w, n].tolist() == [*reading, *[0] * padding]
            assert result.lengths_QGN[q, w, n] == len(reading)
            assert result.finished_QGN[q, w, n] == hypothesis.finished
            log_prob, score = result.log_probs_QGN[q, w, n], result.scores_QGN[q, w, n]
            assert log_prob == pytest.approx(hypothesis.log_prob, rel=0, abs=0 if exact else 1e-5)
            score_expected = hypothesis.score(case.task(case.steps))
            assert score == pytest.approx(score_expected, rel=1e-5, abs=1e-5)
    assert result.winner_Q[q] == answer.winner
