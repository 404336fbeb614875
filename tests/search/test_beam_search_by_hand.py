"""The search, and the oracle with it, on tables written by hand.

B rows, Q sentences in the queue, P pairs, W ways, N n-best, T steps, V vocabulary.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bidi.models.prices import Prices
from bidi.search import coupling
from bidi.search.beam_search import BeamSearchResult
from tests.search import oracle
from tests.search.cases import BOTH, L2R, R2L, Case, assert_sentence, jit_search


def by_hand(
    case: Case, row, max_length: int | None = None
) -> tuple[oracle.Answer, BeamSearchResult]:
    """The oracle's answer, which the search must give too, for a table written by hand.

    `row(way, step, own, partner)`: {token: log-probability}, -9 where nothing is said; `own` and
    `partner` are the last tokens of the two prefixes (the start markers at step 0).
    """
    ways, size = len(case.ways), case.size
    table = np.full((ways, case.steps, size, size, size), -9, np.float32)
    for way, step, own, partner in np.ndindex(table.shape[:-1]):
        for token, log_prob in row(way, step, own, partner).items():
            table[way, step, own, partner, token] = log_prob

    def log_probs(way, own, partner):
        own_last = own[-1] if own else case.start[way]
        partner_last = partner[-1] if partner else case.start[way - 1]
        return table[way, len(own), own_last, partner_last].tolist()

    def step_fn(cache, tokens_BPW, place):
        way_BPW = np.broadcast_to(np.arange(ways), tokens_BPW.shape)
        step_B11, partners_BPW = place.step_B[:, None, None], jnp.flip(tokens_BPW, -1)
        log_probs_BPWV = jnp.asarray(table)[way_BPW, step_B11, tokens_BPW, partners_BPW]
        nothing_BPW = jnp.zeros(tokens_BPW.shape)
        return Prices(log_probs_BPWV, nothing_BPW, nothing_BPW), cache

    max_length = case.steps if max_length is None else max_length
    run = jit_search(case, step_fn, case.search_markers())
    max_length_Q = np.array([max_length], np.int32)
    result = jax.device_get(run({}, max_length_Q=max_length_Q, rows=1, room=case.whole_room))
    answer = oracle.reference_search(log_probs, case.task(max_length))
    assert_sentence(result, 0, case, answer)
    return answer, result


def found(answer: oracle.Answer, way: int = 0) -> list[tuple[tuple[int, ...], bool, float]]:
    return [(h.tokens, h.finished, h.log_prob) for h in answer.n_best[way]]


@pytest.mark.parametrize(
    ("beam", "best"), [(2, ((3,), True, -4.0)), (3, ((), True, -2.5))], ids=["third of 2", "of 3"]
)
def test_an_end_counts_only_among_the_best_candidates(beam, best):
    """Else outputs are empty: the end ranks third at first, and outscores all that follows."""
    case = Case("none", beam, 3, ways=L2R, texts=(3,), alpha=0.0, min_length=0)

    def row(way, step, own, partner):
        return {2: -3} if step else {3: -1, 4: -2, 2: -2.5, 5: -8}

    answer, _ = by_hand(case, row)
    assert found(answer) == [best]


def test_a_longer_hypothesis_wins_late():
    """A search that stops at its first finished hypothesis returns () here.

    So does one that looks a single step ahead: -2.5 / 2 < -1 / 1, but -2.5 / 5 > -1 / 1.
    """
    case = Case("none", 1, 5, ways=L2R, penalty="plain", alpha=1.0, min_length=0)

    def row(way, step, own, partner):
        if step == 0:
            return {2: -1, 3: -2.5}
        return {3: 0, 2: -5} if step < 4 else {3: -1, 2: 0}

    answer, result = by_hand(case, row)
    assert found(answer) == [((3, 3, 3, 3), True, -2.5)]
    assert answer.n_best[0][0].score(case.task(5)) == pytest.approx(-0.5)
    assert result.steps == 5


def test_it_stops_when_nothing_can_change():
    """At -9 and below, whatever is alive after two steps loses even at the greatest length."""
    case = Case("none", 2, 12, ways=R2L)

    def row(way, step, own, partner):
        return {1: 0} if step else {3: -0.5, 4: -0.75}

    answer, result = by_hand(case, row)
    assert found(answer) == [((3,), True, -0.5)]
    assert result.steps == answer.steps == 2
    # Not so while the other direction has finished nothing.
    both = dataclasses.replace(case, ways=BOTH)
    answer, result = by_hand(both, lambda w, t, o, p: {3: -1, 4: -1} if w == 0 else row(w, t, o, p))
    assert result.steps == answer.steps == 12


@pytest.mark.parametrize("rank_unfinished", [False, True])
def test_unfinished_never_outranks_finished_unless_asked(rank_unfinished):
    """L2R ends nothing and scores -0.5; R2L has ended one at -30.25 and cut a better one."""
    case = Case("none", 2, 2, 2, texts=(2, 1), alpha=0.0, rank_unfinished=rank_unfinished)

    def row(way, step, own, partner):
        return {3: -0.25, 4: -1.25} if way == 0 else {3: -0.25, 1: -30}

    answer, _ = by_hand(case, row)
    assert found(answer) == [((3, 3), False, -0.5), ((3, 4), False, -1.5)]
    ended, cut = ((3,), True, -30.25), ((3, 3), False, -0.5)
    assert found(answer, 1) == ([cut, ended] if rank_unfinished else [ended, cut])
    assert answer.winner == (0 if rank_unfinished else 1)


def test_no_fillers():
    """One token may be written and nothing may end: one hypothesis, though two were asked for."""
    case = Case("paired", 4, 3, 2, texts=(1, 1))
    answer, result = by_hand(case, lambda *_: {3: -1}, max_length=1)
    assert found(answer) == found(answer, 1) == [((3,), False, -1.0)]
    assert result.valid_QGN.tolist() == [[[True, False], [True, False]]]


def test_paired_reads_the_partner_of_equal_rank():
    """R2L's second hypothesis becomes its first; L2R's first must then read that one."""
    case = Case("paired", 4, 3, 2, alpha=0.0)

    def row(way, step, own, partner):
        if step == 0:
            return {3: -1, 4: -2}
        if step == 1:  # L2R: 3 beside 3, 4 beside 4. R2L: 4 beside 4 wins over 3 beside 3.
            return {3: -1, 4: -8} if way == 0 else {4: -0.5} if own == 4 else {3: -2}
        return {2: -1 if partner == 4 else -2} if way == 0 else {1: -1}

    answer, _ = by_hand(case, row)
    # L2R alive at step 2: (3 3) -2 and (4 3) -3; R2L: (4 4) -2.5 and (3 3) -3.
    assert found(answer) == [((3, 3), True, -3.0), ((4, 3), True, -5.0)]
    assert found(answer, 1) == [((4, 4), True, -3.5), ((3, 3), True, -4.0)]


def test_product_averages_probabilities_over_the_partners():
    """End after 3: (1/2 + 1/4) / 2; after 4: (1/8 + 1/2) / 2, unweighted by the partners' worth."""
    case = Case("product", 2, 2, 2, alpha=0.0)
    ends = {(3, 3): 1 / 2, (3, 4): 1 / 4, (4, 3): 1 / 8, (4, 4): 1 / 2}

    def row(way, step, own, partner):
        if step == 0:
            return {3: np.log(1 / 2), 4: np.log(1 / 8)}
        return {case.end[way]: np.log(ends.get((own, partner), 1))}

    answer, result = by_hand(case, row)
    expected = [1 / 2 * 3 / 8, 1 / 8 * 5 / 16]
    for way in range(2):
        assert [h.tokens for h in answer.n_best[way]] == [(3,), (4,)]
        np.testing.assert_allclose(np.exp(result.log_probs_QGN[0, way]), expected, rtol=1e-5)


def test_a_mean_of_certain_tokens_is_no_more_than_certain():
    """The search is done by bounds that rely on it; rounding would lift some."""
    scores = np.random.default_rng(0).normal(size=(1000, 3)).astype(np.float32)
    rounded = jax.nn.logsumexp(jax.nn.log_softmax(scores), axis=1)
    assert (rounded > 0).any()
    mean = coupling._log_mean(jnp.zeros_like(scores), scores, axis=1)
    assert (mean <= 0).all()
    np.testing.assert_allclose(mean, 0, atol=1e-6)
