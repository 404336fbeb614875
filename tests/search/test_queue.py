"""The queue of a search: fewer rows than sentences, whatever was in their places before.

B rows, Q sentences in the queue, P pairs, W ways, N n-best, T steps, V vocabulary.
"""

import dataclasses
import heapq

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bidi.search.beam_search import BeamSearchResult
from tests.search.cases import R2L, Case, assert_sentence, search
from tests.search.tables import Sentence

CASES = (
    Case("none", 3, 5, 3, ways=R2L, min_length=0),
    Case("none", 4, 4, 3, texts=(3, 1), alpha=-0.7, min_length=0, rank_unfinished=True),
    Case("paired", 4, 5, 2, markers="tags"),
    Case("paired", 6, 6, penalty="plain", alpha=0.3, min_length=0),
    Case("product", 2, 5, 2, markers="tags", texts=(3, 3)),
    Case("joint", 3, 8, 3, min_length=0),
)
# Rows and sentences; each shape compiles anew.
SHAPES = {CASES[1]: ((1, 7), (3, 7), (3, 4)), CASES[3]: ((1, 7),)}


def name(value) -> str:
    return (
        f"{value.coupling}{value.beam}" if isinstance(value, Case) else "of".join(map(str, value))
    )


def queues(case: Case, size: int) -> st.SearchStrategy[list[Sentence]]:
    """Sentences of most different lengths, anywhere some that are skipped."""
    sentence = st.builds(
        Sentence,
        seed=st.integers(0, 2**32 - 1),
        levels=st.just(0) if case.coupling == "product" else st.sampled_from((2, 8, 32)),
        end_cost=st.sampled_from((0, 1, 8, 40)),
        max_length=st.integers(0, case.steps),
    )
    return st.lists(sentence, min_size=size, max_size=size)


def assert_nothing_found(result: BeamSearchResult, q: int) -> None:
    assert not result.valid_QGN[q].any()
    assert not result.finished_QGN[q].any()
    assert not result.tokens_QGNT[q].any()
    assert not result.lengths_QGN[q].any()
    assert (result.log_probs_QGN[q] == -np.inf).all()
    assert (result.scores_QGN[q] == -np.inf).all()
    assert result.winner_Q[q] == result.steps_Q[q] == 0


def steps_of_a_queue(steps_Q: np.ndarray, rows: int) -> int:
    """Each sentence is taken in turn, as soon as a row is free; a skipped one costs a step."""
    free_at = [0] * rows
    for steps in steps_Q.tolist():
        heapq.heapreplace(free_at, free_at[0] + max(steps, 1))
    return max(free_at)


def steps_of_waiting_batches(steps_Q: np.ndarray, rows: int) -> int:
    """Each batch runs until its last sentence is done."""
    batches = np.split(np.maximum(steps_Q, 1), range(rows, len(steps_Q), rows))
    return sum(int(batch.max()) for batch in batches)


@pytest.mark.parametrize(
    ("case", "shape"),
    [(case, shape) for case in CASES for shape in SHAPES.get(case, ((3, 7),))],
    ids=name,
)
def test_a_queue_changes_no_sentence(case, shape):
    rows, size = shape

    @settings(max_examples=25)
    @given(sentences=queues(case, size), garbage=st.integers(1, 99))
    def check(sentences, garbage):
        at_once = search(case, sentences)
        queued = search(case, sentences, rows=rows, garbage=garbage)
        for field in dataclasses.fields(queued):
            if field.name != "steps":
                mine, expected = getattr(queued, field.name), getattr(at_once, field.name)
                np.testing.assert_array_equal(mine, expected, err_msg=field.name)
        for q, sentence in enumerate(sentences):
            if not sentence.max_length:
                assert_nothing_found(queued, q)
                continue
            answer = case.reference(sentence)
            if not answer.close:
                assert_sentence(queued, q, case, answer)
                assert 0 < queued.steps_Q[q] <= answer.steps
        assert at_once.steps == max(*at_once.steps_Q, 1)
        assert queued.steps == steps_of_a_queue(queued.steps_Q, rows)
        assert queued.steps <= steps_of_waiting_batches(queued.steps_Q, rows)

    check()


@pytest.mark.parametrize("case", [CASES[2], CASES[4]], ids=name)
def test_rows_are_filled_again_before_the_others_are_done(case):
    """Or these tests would show nothing: batches that wait take more steps."""
    levels = 0 if case.coupling == "product" else 32
    sentences = [Sentence(seed, levels, 40, 1) for seed in range(7)]
    sentences[0] = dataclasses.replace(sentences[0], max_length=case.steps)
    result = search(case, sentences, rows=3)
    assert result.steps_Q.tolist() == [case.steps, *[1] * 6]
    assert result.steps == case.steps
    assert steps_of_waiting_batches(result.steps_Q, 3) == case.steps + 2


def test_a_queue_of_nothing_to_do():
    result = search(CASES[2], [Sentence(seed, 8, 0, 0) for seed in range(7)], rows=3)
    for q in range(7):
        assert_nothing_found(result, q)
    assert result.steps == steps_of_a_queue(result.steps_Q, 3)
