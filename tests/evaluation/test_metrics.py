"""Metrics: numbers worked out by hand, sacrebleu's published ones, and invariants."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bidi.evaluation import metrics

# A small alphabet, so that random hypotheses are often right and ties between references happen.
TOKENS = st.lists(st.sampled_from(["a", "b", "CH"]), max_size=6)
EXAMPLES = st.lists(
    st.tuples(TOKENS, st.lists(TOKENS.filter(len), min_size=1, max_size=3)), min_size=1, max_size=6
)
STRING_METRICS = [
    metrics.word_error_rate,
    metrics.token_error_rate,
    metrics.bleu_chrf,
    metrics.length_ratio,
]


def as_strings(examples):
    hypotheses = [" ".join(hypothesis) for hypothesis, _ in examples]
    return hypotheses, [[" ".join(choice) for choice in choices] for _, choices in examples]


def edit_distance(a, b):
    """The textbook recurrence, as the oracle for rapidfuzz and for how it is called."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        previous, row = row, [i]
        for j, y in enumerate(b, start=1):
            row.append(min(previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (x != y)))
    return row[-1]


def test_word_error_rate_takes_any_reference():
    hypotheses = ["R EH D", "R IY D", "R AH D", "T AH"]
    references = [["R EH D", "R IY D"], ["R EH D", "R IY D"], ["R EH D", "R IY D"], ["T AH M"]]
    assert metrics.word_errors(hypotheses, references).numerators.tolist() == [0, 0, 1, 1]
    assert metrics.word_error_rate(hypotheses, references) == 50.0


def test_token_error_rate_by_hand():
    hypotheses = ["R AH D", "K AE T S", ""]
    references = [
        ["W R EH D IH NG", "R EH D"],  # the second: one replaced, of 3
        ["K AE T"],  # one inserted, of 3
        ["AO L"],  # two deleted, of 2
    ]
    errors = metrics.token_errors(hypotheses, references)
    assert errors.numerators.tolist() == [1, 1, 2]
    assert errors.denominators.tolist() == [3, 3, 2]
    # Weighted by length: not the mean of 1/3, 1/3 and 2/2.
    assert metrics.token_error_rate(hypotheses, references) == 100 * 4 / 8


def test_token_errors_take_the_longest_of_equally_near_references():
    for references in (["a b", "a"], ["a", "a b"]):
        errors = metrics.token_errors(["a c"], [references])
        assert (errors.numerators[0], errors.denominators[0]) == (1, 2)


def test_tokens_are_not_characters():
    assert metrics.token_error_rate(["AE1"], [["AE2"]]) == 100.0


def test_token_error_rate_exceeds_100_when_far_too_long():
    assert metrics.token_error_rate(["x y z"], [["a"]]) == 300.0


@given(EXAMPLES)
def test_token_errors_equal_the_textbook(examples):
    errors = metrics.token_errors(*as_strings(examples))
    for (hypothesis, choices), edits, length in zip(examples, *errors, strict=True):
        expected = [(edit_distance(hypothesis, choice), -len(choice)) for choice in choices]
        assert (edits, -length) == min(expected)


@given(EXAMPLES)
def test_a_word_is_wrong_when_a_token_is(examples):
    words = metrics.word_errors(*as_strings(examples))
    tokens = metrics.token_errors(*as_strings(examples))
    np.testing.assert_array_equal(words.numerators, tokens.numerators > 0)


@given(EXAMPLES, st.integers(1, 3))
def test_white_space_only_separates_tokens(examples, spaces):
    hypotheses, references = as_strings(examples)
    spaced = [f" {hypothesis}".replace(" ", " " * spaces) for hypothesis in hypotheses]
    for metric in (metrics.word_error_rate, metrics.token_error_rate, metrics.length_ratio):
        assert metric(spaced, references) == metric(hypotheses, references)


@given(EXAMPLES, st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_order_of_examples_and_references_does_not_matter(examples, random):
    shuffled = random.sample(examples, len(examples))
    for metric in STRING_METRICS:
        assert metric(*as_strings(shuffled)) == pytest.approx(metric(*as_strings(examples)))
    # Not of sacrebleu's chrF, which takes the first of equally near references.
    shuffled = [(hypothesis, random.sample(c, len(c))) for hypothesis, c in examples]
    for metric in (metrics.word_error_rate, metrics.token_error_rate, metrics.length_ratio):
        assert metric(*as_strings(shuffled)) == metric(*as_strings(examples))


@given(EXAMPLES)
def test_one_more_reference_never_adds_a_wrong_word_or_an_edit(examples):
    hypotheses, references = as_strings(examples)
    more = [[*choices, "a b"] for choices in references]
    for count in (metrics.word_errors, metrics.token_errors):
        assert (count(hypotheses, more)[0] <= count(hypotheses, references)[0]).all()


@given(st.lists(TOKENS.filter(len), min_size=1, max_size=6))
def test_a_copy_of_the_reference_is_perfect(targets):
    hypotheses, references = as_strings([(target, [["x"] * 9, target]) for target in targets])
    assert metrics.word_error_rate(hypotheses, references) == 0.0
    assert metrics.token_error_rate(hypotheses, references) == 0.0
    assert metrics.length_ratio(hypotheses, references) == 1.0
    accuracy = metrics.positional_accuracy(targets, [[target] for target in targets])
    assert accuracy["first_4"] == accuracy["last_4"] == 100.0


# sacrebleu's own example: its README, and its tests for the BLEU of 48.530827.
DOGS = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
DOG_REFERENCES = [
    ["The dog bit the man.", "The dog had bit the man."],
    ["It was not unexpected.", "No one was surprised."],
    ["The man bit him first.", "The man had bitten the dog."],
]


def test_bleu_and_chrf_equal_the_published_numbers():
    scores = metrics.bleu_chrf(DOGS, DOG_REFERENCES)
    assert scores["bleu"] == pytest.approx(48.530827, abs=1e-6)
    assert scores["chrf"] == pytest.approx(59.73, abs=0.005)
    assert scores["bleu_signature"].startswith(
        "nrefs:2|case:mixed|eff:no|tok:13a|smooth:exp|version:"
    )
    assert scores["chrf_signature"].startswith(
        "nrefs:2|case:mixed|eff:yes|nc:6|nw:0|space:no|version:"
    )


def test_bleu_is_that_of_summed_counts():
    """Whatever the examples: some have fewer references, some outputs are empty or too short."""
    rng = np.random.default_rng(0)

    def text():
        return " ".join(rng.choice(["der", "Hund", "(sieht)", "die", "Frau."], rng.integers(0, 9)))

    for size in (1, 2, 30):
        hypotheses = [text() for _ in range(size)]
        references = [[text() for _ in range(rng.integers(1, 4))] for _ in range(size)]
        for kind in ("words", "characters"):
            counts = metrics.bleu_counts(hypotheses, references, kind)
            assert counts.shape == (size, 10)
            whole = metrics.bleu_chrf(hypotheses, references, kind)["bleu"]
            assert metrics.bleu_of(counts.sum(axis=0)) == pytest.approx(whole, abs=1e-9)
    with pytest.raises(ValueError, match="every example needs a reference"):
        metrics.bleu_counts(["a"], [[]])


def test_bleu_and_chrf_with_unequal_numbers_of_references():
    # A reference given twice adds no n-gram: filling up with copies must change nothing.
    unequal = [DOG_REFERENCES[0], DOG_REFERENCES[1][:1], DOG_REFERENCES[2][:1]]
    filled = [DOG_REFERENCES[0], DOG_REFERENCES[1][:1] * 2, DOG_REFERENCES[2][:1] * 2]
    scores, expected = metrics.bleu_chrf(DOGS, unequal), metrics.bleu_chrf(DOGS, filled)
    assert scores["bleu"] == pytest.approx(expected["bleu"])
    assert scores["chrf"] == pytest.approx(expected["chrf"])
    assert scores["bleu_signature"].startswith("nrefs:var|")


def test_empty_hypotheses_count():
    assert metrics.bleu_chrf(["", "", ""], DOG_REFERENCES)["bleu"] == 0.0
    half = metrics.bleu_chrf([DOGS[0], ""], [DOG_REFERENCES[0], DOG_REFERENCES[0]])
    assert 0 < half["bleu"] < 50


def test_positional_accuracy_by_hand():
    hypotheses = ["abXde", "Yb", "abc"]
    references = [["abcde"], ["ab"], ["abc_much_too_far", "bc"]]
    # The third is nearest to "bc"; b and c are in place from the end, not from the beginning.
    accuracy = metrics.positional_accuracy(hypotheses, references)
    assert accuracy == {
        "first": pytest.approx([100 * 1 / 3, 100 * 2 / 3, 0, 100]),
        "last": pytest.approx([100, 100 * 2 / 3, 0, 100]),
        "first_4": pytest.approx(100 * 4 / 8),
        "last_4": pytest.approx(100 * 6 / 8),
    }


def test_positional_accuracy_counts_missing_tokens_as_wrong():
    accuracy = metrics.positional_accuracy([[7, 8], []], [[[7, 8, 9, 10, 11]], [[7]]])
    assert accuracy["first"] == [50.0, 100.0, 0.0, 0.0]
    assert accuracy["last"] == [0.0, 0.0, 0.0, 0.0]
    assert accuracy["first_4"] == 40.0


def test_positional_accuracy_has_no_position_that_no_reference_has():
    accuracy = metrics.positional_accuracy(["abcd"], [["ab"]], count=3)
    assert accuracy == {"first": [100.0, 100.0], "last": [0.0, 0.0], "first_3": 100.0, "last_3": 0}
    json.dumps(accuracy, allow_nan=False)


@given(EXAMPLES, st.integers(1, 5))
def test_positional_accuracy_of_reversed_text_swaps_the_ends(examples, count):
    # One reference: of several equally near ones, the mirror image may choose another.
    hypotheses = [hypothesis for hypothesis, _ in examples]
    references = [[choices[0]] for _, choices in examples]
    forward = metrics.positional_accuracy(hypotheses, references, count)
    backward = metrics.positional_accuracy(
        [h[::-1] for h in hypotheses], [[r[0][::-1]] for r in references], count
    )
    assert forward["first"] == backward["last"]
    assert forward["last"] == backward["first"]
    assert forward[f"first_{count}"] == backward[f"last_{count}"]


@given(EXAMPLES)
def test_positional_accuracy_of_all_positions_is_the_mean_by_references(examples):
    hypotheses = [hypothesis for hypothesis, _ in examples]
    references = [[choices[0]] for _, choices in examples]
    accuracy = metrics.positional_accuracy(hypotheses, references)
    having = [sum(len(r[0]) > p for r in references) for p in range(len(accuracy["first"]))]
    for end in ("first", "last"):
        assert accuracy[f"{end}_4"] == pytest.approx(np.average(accuracy[end], weights=having))


def test_length_ratio_by_hand():
    # 4 against 5 (closest), 2 against the shorter of 1 and 3, both one away.
    assert metrics.length_ratio(["a b c d", "a b"], [["a", "a b c d e"], ["a b c", "a"]]) == 6 / 6
    assert metrics.length_ratio(["a"], [["a b c d"]]) == 0.25


ALL_METRICS = [*STRING_METRICS, metrics.positional_accuracy]


@pytest.mark.parametrize("metric", ALL_METRICS)
def test_what_cannot_be_scored_is_refused(metric):
    with pytest.raises(ValueError, match="2 hypotheses but references for 1 examples"):
        metric(["a", "b"], [["a"]])
    with pytest.raises(ValueError, match="no hypotheses"):
        metric([], [])
    with pytest.raises(ValueError, match=r"references\[1\] is empty"):
        metric(["a", "b"], [["a"], []])
    with pytest.raises(ValueError, match=r"references\[0\] is a string"):
        metric(["a"], ["a"])


@pytest.mark.parametrize(
    "metric", [metrics.token_error_rate, metrics.positional_accuracy, metrics.length_ratio]
)
def test_no_rate_over_nothing(metric):
    with pytest.raises(ValueError, match="the reference of every example is empty"):
        metric(["a", ""], [[""], [""]])
