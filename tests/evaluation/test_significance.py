"""The paired bootstrap: exact small cases, symmetry, and how often it errs under the null."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bidi.evaluation.metrics import Errors, bleu_chrf, bleu_counts, token_errors, word_errors
from bidi.evaluation.significance import (
    bootstrap_ratio,
    error_overlap,
    paired_bootstrap,
    paired_bootstrap_bleu,
)


def errors(numerators, denominators=None):
    numerators = np.asarray(numerators, np.int64)
    return Errors(
        numerators,
        np.ones_like(numerators) if denominators is None else np.asarray(denominators, np.int64),
    )


COUNTS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(1, 5), st.integers(1, 5)),
    min_size=1,
    max_size=8,
).map(lambda rows: [np.array(column) for column in zip(*rows, strict=True)])


@given(COUNTS)
def test_a_system_does_not_differ_from_itself(counts):
    a = errors(counts[0], counts[2])
    result = paired_bootstrap(a, a, samples=20, seed=0)
    assert result == {"difference": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}


@given(COUNTS, st.integers(0, 99))
@settings(max_examples=50)
def test_swapping_the_systems_mirrors_the_answer(counts, seed):
    a, b = errors(counts[0], counts[2]), errors(counts[1], counts[3])
    forward = paired_bootstrap(a, b, samples=50, seed=seed)
    backward = paired_bootstrap(b, a, samples=50, seed=seed)
    assert forward["difference"] == -backward["difference"]
    assert forward["low"] == pytest.approx(-backward["high"])
    assert forward["high"] == pytest.approx(-backward["low"])
    assert forward["p"] == backward["p"]
    assert forward == paired_bootstrap(a, b, samples=50, seed=seed)


@given(COUNTS)
def test_difference_is_that_of_the_corpus_rates(counts):
    a, b = errors(counts[0], counts[2]), errors(counts[1], counts[3])
    difference = paired_bootstrap(a, b, samples=1, seed=0)["difference"]
    assert difference == pytest.approx(a.percent - b.percent)


@given(COUNTS, st.integers(0, 99))
@settings(max_examples=50)
def test_a_ratio_is_a_comparison_over_common_denominators(counts, seed):
    of_a, of_b, terms, _ = counts
    compared = paired_bootstrap(errors(of_a, terms), errors(of_b, terms), samples=50, seed=seed)
    ratio = bootstrap_ratio(of_a - of_b, terms, samples=50, seed=seed)
    for key in ("difference", "low", "high"):
        assert ratio[key] == pytest.approx(compared[key] / 100)


def test_bleu_is_resampled_as_corpora_are():
    """Each resample's BLEU is that of the corpus of the examples drawn."""
    words = ["ein", "Mann", "und", "eine", "Frau", "mit", "dem", "Hund", "im", "Park"]
    rng = np.random.default_rng(1)
    references = [[" ".join(rng.permutation(words))] for _ in range(12)]
    a, b = (
        [" ".join(reference[0].split()[start:]) for reference in references] for start in (0, 2)
    )
    counts_a, counts_b = bleu_counts(a, references), bleu_counts(b, references)
    found = paired_bootstrap_bleu(counts_a, counts_b, samples=40, seed=3)

    def difference(drawn):
        right = [references[n] for n in drawn]
        return np.subtract(*(bleu_chrf([of[n] for n in drawn], right)["bleu"] for of in (a, b)))

    drawing = np.random.default_rng(3)
    expected = [difference(drawing.integers(12, size=12)) for _ in range(40)]
    assert found["difference"] == pytest.approx(difference(range(12)))
    assert (found["low"], found["high"]) == pytest.approx(np.percentile(expected, [2.5, 97.5]))
    assert found["low"] > 0
    assert found["p"] == pytest.approx(2 / 41)
    back = paired_bootstrap_bleu(counts_b, counts_a, samples=40, seed=3)
    assert back["difference"] == -found["difference"]
    same = paired_bootstrap_bleu(counts_a, counts_a, samples=40, seed=3)
    assert same == {"difference": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}
    with pytest.raises(ValueError, match=r"the same examples.*12 for a, 11 for b"):
        paired_bootstrap_bleu(counts_a, counts_b[1:], seed=0)


@pytest.mark.parametrize("terms", [[], [2, 0]])
def test_a_ratio_over_nothing_is_refused(terms):
    with pytest.raises(ValueError, match="a ratio needs at least one example"):
        bootstrap_ratio(np.zeros(len(terms)), np.array(terms), seed=0)


def test_interval_and_p_equal_those_of_all_resamples():
    a, b = errors([0, 1, 0, 2], [2, 3, 1, 4]), errors([2, 1, 1, 1], [2, 4, 1, 5])
    exact = []
    for drawn in itertools.product(range(4), repeat=4):
        rates = [
            100 * e.numerators[[*drawn]].sum() / e.denominators[[*drawn]].sum() for e in (a, b)
        ]
        exact.append(rates[0] - rates[1])
    low, high = np.percentile(exact, [2.5, 97.5])
    p = 2 * min(np.less_equal(exact, 0).mean(), np.greater_equal(exact, 0).mean())
    assert 0.05 < p < 0.9

    result = paired_bootstrap(a, b, samples=20_000, seed=0)
    # The 256 differences lie apart, so that the sampled percentiles fall on the same ones.
    assert (result["low"], result["high"]) == pytest.approx((low, high))
    assert result["p"] == pytest.approx(p, abs=0.02)


def test_examples_are_drawn_in_pairs():
    # b makes one error more on every example: certain, however much the examples differ.
    a = errors(np.arange(100) % 7, np.full(100, 10))
    b = errors(a.numerators + 1, a.denominators)
    result = paired_bootstrap(a, b, samples=999, seed=0)
    assert (result["difference"], result["low"], result["high"]) == pytest.approx((-10, -10, -10))
    assert result["p"] == 2 / 1000  # the least that 999 resamples can show


def test_false_alarms_are_about_one_in_twenty():
    rng = np.random.default_rng(0)
    alarms = 0
    for seed in range(300):
        a, b = (errors(rng.random(100) < 0.3) for _ in range(2))
        result = paired_bootstrap(a, b, samples=200, seed=seed)
        alarms += result["p"] < 0.05
        # p and interval tell the same, but for a resample or two at the edge.
        if not 0.02 < result["p"] < 0.09:
            assert (result["p"] < 0.05) == (not result["low"] <= 0 <= result["high"])
    assert 3 <= alarms <= 30


def test_a_better_system_is_found_from_strings():
    references = [["a"]] * 60
    a = word_errors(["a"] * 50 + ["b"] * 10, references)
    b = word_errors(["a"] * 35 + ["b"] * 25, references)
    result = paired_bootstrap(a, b, samples=500, seed=0)
    assert result["difference"] == pytest.approx(-25)
    assert result["low"] < -25 < result["high"] < 0
    assert result["p"] < 0.01


def test_an_empty_reference_is_an_example_as_others():
    references = [["a b"], ["c"], [""]] * 20
    a = token_errors(["a b", "d", ""] * 20, references)
    b = token_errors(["a", "c", "x"] * 20, references)
    result = paired_bootstrap(a, b, samples=500, seed=0)
    assert result["difference"] == pytest.approx(a.percent - b.percent)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (errors([1, 2]), errors([1]), "got 2 numerators and 2 denominators for a, 1 and 1 for b"),
        (errors([]), errors([]), "at least one"),
        (errors([1]), errors([1], [0]), r"system b has denominators below 0, or none above"),
        (errors([1, 1], [2, -1]), errors([1, 1]), r"system a has denominators below 0"),
        (errors([1] * 9, [1] + [0] * 8), errors([1] * 9), "too many denominators are 0"),
    ],
)
def test_what_cannot_be_compared_is_refused(a, b, message):
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(a, b, samples=10, seed=0)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=12))
def test_overlap_is_counted_example_by_example(rows):
    a, b = (errors(column) for column in zip(*rows, strict=True))
    wrong = [(one > 0, other > 0) for one, other in rows]
    share = {pair: 100 * wrong.count(pair) / len(wrong) for pair in wrong}
    overlap = error_overlap(a, b)
    assert overlap["both"] == pytest.approx(share.get((True, True), 0))
    assert overlap["only_a"] == pytest.approx(share.get((True, False), 0))
    assert overlap["only_b"] == pytest.approx(share.get((False, True), 0))
    columns = np.array(wrong, float).T
    if (columns.min(axis=1) < columns.max(axis=1)).all():
        assert overlap["correlation"] == pytest.approx(np.corrcoef(columns)[0, 1], abs=1e-12)
    else:
        assert np.isnan(overlap["correlation"])


def test_correlation_of_errors_by_hand():
    together, apart = errors([1, 0, 3, 0]), errors([0, 1, 0, 1])
    assert error_overlap(together, errors([2, 0, 1, 0]))["correlation"] == pytest.approx(1)
    assert error_overlap(together, apart)["correlation"] == pytest.approx(-1)
    assert error_overlap(together, errors([1, 1, 0, 0]))["correlation"] == pytest.approx(0)
