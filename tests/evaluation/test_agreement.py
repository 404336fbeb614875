import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bidi.evaluation import agreement
from bidi.evaluation.agreement import Candidates, Choice
from bidi.evaluation.config import AgreementConfig
from bidi.evaluation.found import Found, Hypothesis, together


def hypothesis(tokens, direction="l2r", score=-1.0, finished=True):
    return Hypothesis(tuple(tokens), direction, 2 * score, score, finished)


class Scorer:
    """Stands for a generator: the log-probabilities of an output are a table's."""

    def __init__(self, **tables):
        self.tables, self.asked = tables, []

    def score(self, sources, candidates, interact=False):
        self.asked.append((list(sources), [list(listed) for listed in candidates], interact))
        return [
            {
                direction: np.array([table[tokens] for tokens in listed], np.float32)
                for direction, table in self.tables.items()
            }
            for listed in candidates
        ]


def candidates(sources, found, scorers, interact=False):
    return agreement.candidates(sources, found, scorers, interact=interact)


# Two finished outputs that both ends wrote, one of the left's own, and one that was cut off.
LEFT = (hypothesis([6, 7], score=-1.0), hypothesis([8], score=-4.0))
RIGHT = (
    hypothesis([8], "r2l", score=-2.0),
    hypothesis([6, 7], "r2l", score=-3.0),
    hypothesis([9, 9, 9], "r2l", score=-0.5, finished=False),
)
BOTH = Found({"l2r": LEFT, "r2l": RIGHT}, LEFT[0])
L2R = {(6, 7): -3.0, (8,): -2.5, (9, 9, 9): -9.0, (5,): -7.0}
R2L = {(6, 7): -2.0, (8,): -3.0, (9, 9, 9): -8.0, (5,): -6.0}


def test_the_pool_has_no_repeats_and_only_what_ended():
    scorer = Scorer(l2r=L2R, r2l=R2L)
    (pool,) = candidates(["abc"], [BOTH], [scorer])
    assert pool.hypotheses == (LEFT[0], RIGHT[0])  # of a repeat, the better scored one
    assert scorer.asked == [(["abc"], [[(6, 7), (8,)]], False)]
    assert pool.first.tolist() == [-3.0, -2.5]
    assert pool.second.tolist() == [-2.0, -3.0]
    assert pool.first.dtype == pool.second.dtype == np.float64


def test_the_pool_is_all_where_nothing_ended():
    cut = [hypothesis([9, 9, 9], score=-2.0, finished=False)]
    other = [hypothesis([5], "r2l", -1.0, finished=False), RIGHT[2]]
    found = Found({"l2r": tuple(cut), "r2l": tuple(other)}, RIGHT[2])
    (pool,) = candidates(["abc"], [found], [Scorer(l2r=L2R, r2l=R2L)])
    assert pool.hypotheses == (RIGHT[2], other[0])


def test_two_models_score_as_one_of_two_directions():
    models = [Scorer(l2r=L2R), Scorer(r2l=R2L)]
    (pool,) = candidates(["abc"], [BOTH], models)
    (expected,) = candidates(["abc"], [BOTH], [Scorer(l2r=L2R, r2l=R2L)])
    assert pool.hypotheses == expected.hypotheses
    np.testing.assert_array_equal(pool.first, expected.first)
    np.testing.assert_array_equal(pool.second, expected.second)
    # The weight is that of the model named first.
    (turned,) = candidates(["abc"], [BOTH], models[::-1])
    np.testing.assert_array_equal(turned.first, expected.second)
    np.testing.assert_array_equal(turned.second, expected.first)


def test_streams_read_each_other_where_it_is_asked():
    scorers = [Scorer(l2r=L2R, r2l=R2L), Scorer(l2r=L2R)]
    candidates(["abc"], [BOTH], scorers, interact=True)
    assert [asked[-1] for scorer in scorers for asked in scorer.asked] == [True, True]


@given(st.data())
def test_any_two_models_score_by_their_means(data):
    """Each of one score, of two, or of more."""
    numbers = st.floats(-20, 0, width=32)
    models, expected = [], []
    for _ in range(2):
        names = data.draw(st.sampled_from([["l2r"], ["joint"], ["l2r", "r2l"], ["a", "b", "c"]]))
        rows = [data.draw(st.tuples(numbers, numbers)) for _ in names]
        tables = [{(6, 7): one, (8,): other} for one, other in rows]
        models.append(Scorer(**dict(zip(names, tables, strict=True))))
        expected.append([sum(column) / len(names) for column in zip(*rows, strict=True)])
    (pool,) = candidates(["abc"], [BOTH], models)
    np.testing.assert_allclose([pool.first, pool.second], expected, rtol=1e-6)


def test_lists_of_two_models_of_one_direction_are_pooled():
    """What only one of them wrote counts, and is known as its."""
    other = (hypothesis([5], score=-0.2), hypothesis([6, 7], score=-0.3))
    found = together([Found({"l2r": LEFT}, LEFT[0]), Found({"l2r": other}, other[0])])
    first, second = {(6, 7): -3.0, (8,): -9.0, (5,): -4.0}, {(6, 7): -4.0, (8,): -9.0, (5,): -2.0}
    (pool,) = candidates(["abc"], [found], [Scorer(l2r=first), Scorer(l2r=second)])
    ranked = pool.ranked(Choice(0.5, 0.0))
    assert [(h.tokens, h.direction) for h in ranked] == [
        ((5,), "l2r (2)"),
        ((6, 7), "l2r (2)"),  # of a repeat, the better scored one
        ((8,), "l2r (1)"),
    ]
    assert pool.choose(Choice(0.9, 0.0)).tokens == (6, 7)


def test_empty_sources_keep_their_place():
    empty = Found({"l2r": (), "r2l": ()}, None)
    pools = candidates(["", "abc", ""], [empty, BOTH, empty], [Scorer(l2r=L2R, r2l=R2L)])
    chosen = [pool.choose(Choice(0.5, 1.0)) for pool in pools]
    assert [one and (one.tokens, one.direction) for one in chosen] == [
        None,
        (LEFT[0].tokens, LEFT[0].direction),
        None,
    ]
    assert [len(pool.ranked(Choice(0.5, 1.0))) for pool in pools] == [0, 2, 0]


@pytest.mark.parametrize(
    ("weight", "alpha", "tokens"),
    [
        (1.0, 0.0, (8,)),  # -3.0 against -2.5
        (0.0, 0.0, (6, 7)),  # -2.0 against -3.0
        (0.5, 0.0, (6, 7)),  # -2.5 against -2.75
        (0.7, 0.0, (8,)),  # -2.7 against -2.65
        (0.7, 1.0, (6, 7)),  # -2.7 / 3 against -2.65 / 2: the end marker is counted
        (1.0, 0.44, (8,)),  # 3.0 / 3^a = 2.5 / 2^a at a = 0.4497
        (1.0, 0.46, (6, 7)),
    ],
)
def test_the_best_weighted_sum_is_chosen(weight, alpha, tokens):
    (pool,) = candidates(["abc"], [BOTH], [Scorer(l2r=L2R, r2l=R2L)])
    choice = Choice(weight, alpha)
    assert pool.choose(choice).tokens == tokens
    assert pool.ranked(choice)[0] == pool.choose(choice)
    assert {one.tokens for one in pool.ranked(choice)} == {one.tokens for one in pool.hypotheses}


log_probs = st.floats(-50, -0.01)


@given(
    st.lists(st.tuples(st.integers(0, 9), log_probs, log_probs), min_size=1, max_size=8),
    st.floats(0, 1),
    st.floats(-1, 2),
)
def test_candidates_are_ranked_by_the_weighted_sum(rows, weight, alpha):
    pool = Candidates(
        tuple(
            dataclasses.replace(hypothesis([6] * length), log_prob=float(place))
            for place, (length, _, _) in enumerate(rows)
        ),
        np.array([left for _, left, _ in rows]),
        np.array([right for _, _, right in rows]),
    )
    sums = [
        (weight * left + (1 - weight) * right) / (length + 1) ** alpha
        for length, left, right in rows
    ]
    ranked = pool.ranked(Choice(weight, alpha))
    places = sorted(range(len(rows)), key=lambda place: -sums[place])
    assert sorted(one.log_prob for one in ranked) == list(range(len(rows)))
    for one, place in zip(ranked, places, strict=True):
        # Sums that are equal, to rounding, may come in any order.
        assert one.score == pytest.approx(sums[place], rel=1e-9)
        assert one.score == pytest.approx(sums[int(one.log_prob)], rel=1e-9)


def test_tune_takes_the_best_of_the_grid():
    config = AgreementConfig(weights=(0.0, 0.5, 1.0), alphas=(0.0, 2.0))
    pools = candidates(["a", "b"], [BOTH, BOTH], [Scorer(l2r=L2R, r2l=R2L)])
    seen = []

    def loss(chosen):
        seen.append([h.tokens for h in chosen])
        return {1: 30.0, 2: 10.0, 5: 10.0}.get(len(seen), 20.0)

    assert agreement.tune(pools, config, loss) == (Choice(0.0, 2.0), 10.0)
    # Weight by weight, alpha by alpha; only weight 1 without a length norm prefers the short one.
    assert seen == [[(6, 7)] * 2] * 4 + [[(8,)] * 2, [(6, 7)] * 2]
