"""ROUGE and copying: numbers worked out by hand, and invariants."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bidi.evaluation import rouge

WORDS = st.lists(st.sampled_from(["a", "b", "cat"]), max_size=6).map(" ".join)


def test_tokens_are_words_or_characters():
    assert rouge.tokens("The X-Ray's 2nd  image: é", "words") == [
        "the",
        "x",
        "ray",
        "s",
        "2nd",
        "image",
    ]
    assert rouge.tokens("基于CNN 的\u3000图像", "characters") == list("基于cnn的图像")
    assert rouge.tokens("", "words") == rouge.tokens(" ", "characters") == []


def test_rouge_by_hand():
    # Three of four words, two of three bigrams; b c d of b c x d: precision and recall are equal.
    scores = rouge.rouge(["b c x d"], [["b c d e"]], "words")
    assert scores["rouge1"] == pytest.approx(75)
    assert scores["rouge2"] == pytest.approx(100 / 3)
    assert scores["rougeL"] == pytest.approx(75)
    # 2 of 2 and 2 of 4: F1 of 1 and 1/2; in the other order one word is in sequence: of 1/2, 1/4.
    scores = rouge.rouge(["e B"], [["b c d e"]], "words")
    assert scores["rouge1"] == pytest.approx(100 * 2 / 3)
    assert scores["rouge2"] == 0
    assert scores["rougeL"] == pytest.approx(100 / 3)


def test_rouge_is_a_mean_over_examples_of_the_best_reference():
    scores = rouge.rouge(["a b", ""], [["x y", "a b", "a"], ["z"]], "words")
    assert (scores["rouge1"], scores["rouge2"], scores["rougeL"]) == (50, 50, 50)


def test_rouge_of_chinese_is_of_characters():
    hypotheses, references = ["图像识别的方法"], [["图像分割方法"]]
    assert rouge.rouge(hypotheses, references, "words")["rouge1"] == 0
    scores = rouge.rouge(hypotheses, references, "characters")
    # 4 of 7 and 4 of 6; bigrams 图像 and 方法 of 6 and of 5.
    assert scores["rouge1"] == scores["rougeL"] == pytest.approx(100 * 8 / 13)
    assert scores["rouge2"] == pytest.approx(100 * 4 / 11)


def test_the_signature_says_what_was_counted():
    for kind in ("words", "characters"):
        signature = rouge.rouge(["a"], [["a"]], kind)["rouge_signature"]
        assert signature.startswith(f"f1|tok:{kind}|stem:no|version:rouge-score-0.")


@given(st.lists(st.tuples(WORDS, st.lists(WORDS, min_size=1, max_size=2)), min_size=1, max_size=4))
def test_errors_are_what_lacks_to_rouge_l(examples):
    hypotheses, references = zip(*examples, strict=True)
    errors = rouge.rouge_l_errors(hypotheses, references, "words")
    assert len(errors.numerators) == len(examples)
    expected = 100 - rouge.rouge(hypotheses, references, "words")["rougeL"]
    assert errors.percent == pytest.approx(expected, abs=1e-4)


def test_copied_and_novelty_by_hand():
    hypotheses = ["a Cat sat, a dog", "x"]
    sources = ["the cat sat on a mat", "y"]
    # a, cat, sat, a of six words; of four bigrams "cat sat" alone is in the source.
    assert rouge.copied(hypotheses, sources, "words") == pytest.approx(100 * 4 / 6)
    assert rouge.novelty(hypotheses, sources, "words") == pytest.approx(100 * 3 / 4)
    # 图 像 of three characters, 图像 of two bigrams.
    assert rouge.copied(["图像法"], ["图像处理"], "characters") == pytest.approx(200 / 3)
    assert rouge.novelty(["图像法"], ["图像处理"], "characters") == 50


def test_nothing_is_copied_where_nothing_is_written():
    assert rouge.copied(["", "."], ["a", "b"], "words") == 0
    assert rouge.novelty(["a", ""], ["a", "b"], "words") == 0


@given(WORDS.filter(len), WORDS, WORDS)
def test_a_piece_of_the_source_is_copied_and_not_new(piece, before, after):
    source = f"{before} {piece} {after}"
    assert rouge.copied([piece], [source], "words") == 100
    assert rouge.novelty([piece], [source], "words") == 0
    assert rouge.copied([piece], ["other words"], "words") == 0


@pytest.mark.parametrize("metric", [rouge.rouge, rouge.rouge_l_errors])
def test_what_cannot_be_scored_is_refused(metric):
    with pytest.raises(ValueError, match="no hypotheses"):
        metric([], [], "words")
    with pytest.raises(ValueError, match=r"references\[0\] is a string"):
        metric(["a"], ["a"], "words")
