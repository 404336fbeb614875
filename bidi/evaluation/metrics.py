"""How near hypotheses are to their references: pure functions over strings and token lists.

Every example has one hypothesis and at least one reference; the number of references may differ
from example to example. Distances are rapidfuzz's; BLEU and chrF, with their signatures, are
sacrebleu's. Functions named `..._errors` give the counts of each example, which
`significance` resamples; those named `..._rate` give their percentage over the corpus.

Dimension letters: N examples.
"""

import itertools
from collections.abc import Hashable, Sequence
from typing import NamedTuple, TypedDict

import numpy as np
from rapidfuzz.distance import Levenshtein
from sacrebleu.metrics import BLEU, CHRF

from bidi.evaluation.config import TokenKind

Tokens = Sequence[Hashable]

_BLEU_TOKENS: dict[TokenKind, str] = {"words": "13a", "characters": "zh"}


class Errors(NamedTuple):
    """Errors and what they are counted over, one of each an example.

    Attributes:
      numerators: int64[N], errors.
      denominators: int64[N], what could have been wrong: words, or tokens of the reference.
    """

    numerators: np.ndarray
    denominators: np.ndarray

    @property
    def percent(self) -> float:
        """100 x sum of errors / sum of denominators: weighted by length, not a mean of ratios.

        Raises:
          ValueError: the denominators are all zero.
        """
        total = int(self.denominators.sum())
        if total == 0:
            raise ValueError("no rate over nothing: the reference of every example is empty")
        return 100 * int(self.numerators.sum()) / total


class BleuChrf(TypedDict):
    """Corpus BLEU and chrF, 0 to 100, each with the signature that makes it comparable."""

    bleu: float
    bleu_signature: str
    chrf: float
    chrf_signature: str


def word_errors(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Errors:
    """Counts 1 for each hypothesis that equals none of its references, 0 for the others.

    White space only separates tokens: how much of it there is does not matter.

    Raises:
      ValueError: there is nothing to score, or an example has no reference.
    """
    check(hypotheses, references)
    wrong = [
        hypothesis.split() not in [choice.split() for choice in choices]
        for hypothesis, choices in zip(hypotheses, references, strict=True)
    ]
    return Errors(np.array(wrong, np.int64), np.ones(len(wrong), np.int64))


def word_error_rate(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Gives the percentage of hypotheses that equal none of their references.

    This is the word error rate of grapheme-to-phoneme conversion, where an example is a word and
    any of its listed pronunciations is right; for sentences it is 100 minus the exact matches.
    """
    return word_errors(hypotheses, references).percent


def token_errors(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Errors:
    """Counts the edits from each hypothesis to its nearest reference, over that reference's length.

    Tokens are what white space separates; an edit inserts, deletes or replaces one. Nearest is the
    reference at the fewest edits, of several such the longest.

    Raises:
      ValueError: there is nothing to score, or an example has no reference.
    """
    check(hypotheses, references)
    nearest = [
        _nearest(hypothesis.split(), [choice.split() for choice in choices])
        for hypothesis, choices in zip(hypotheses, references, strict=True)
    ]
    return Errors(
        np.array([edits for edits, _ in nearest], np.int64),
        np.array([len(reference) for _, reference in nearest], np.int64),
    )


def token_error_rate(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Gives edits to the nearest references as a percentage of their tokens; it may exceed 100.

    With phonemes as tokens this is the phoneme error rate (PER), with words the WER of speech
    recognition.

    Raises:
      ValueError: as `token_errors`, or the reference of every example is empty.
    """
    return token_errors(hypotheses, references).percent


def bleu_chrf(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], kind: TokenKind = "words"
) -> BleuChrf:
    """Gives sacrebleu's corpus BLEU (cased) and chrF2 of detokenised text.

    Args:
      hypotheses: of each example.
      references: of each example, one or more.
      kind: of BLEU's tokens: sacrebleu's `13a` for words, its `zh` for (Chinese) characters.

    Raises:
      ValueError: there is nothing to score, or an example has no reference.
    """
    check(hypotheses, references)
    # sacrebleu wants one list a reference slot; None is its mark for "this example has fewer".
    slots = list(itertools.zip_longest(*references))
    bleu, chrf = BLEU(tokenize=_BLEU_TOKENS[kind]), CHRF()
    return {
        "bleu": bleu.corpus_score(hypotheses, slots).score,
        "bleu_signature": str(bleu.get_signature()),
        "chrf": chrf.corpus_score(hypotheses, slots).score,
        "chrf_signature": str(chrf.get_signature()),
    }


def bleu_counts(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], kind: TokenKind = "words"
) -> np.ndarray:
    """Counts what BLEU adds up over a corpus, as `bleu_chrf` does: int64[N, 2 + 2 x 4].

    Of each example the tokens of the hypothesis and of the reference closest in length, its n-grams
    found in a reference, and all of them, of 1 to 4 tokens. `bleu_of` makes BLEU of their sums.

    Raises:
      ValueError: there is nothing to score, or an example has no reference.
    """
    check(hypotheses, references)
    # By the effective order sacrebleu only means the score of a sentence, which is not looked at.
    bleu = BLEU(tokenize=_BLEU_TOKENS[kind], effective_order=True)
    scores = [
        bleu.sentence_score(hypothesis, list(choices))
        for hypothesis, choices in zip(hypotheses, references, strict=True)
    ]
    counts = [[one.sys_len, one.ref_len, *one.counts, *one.totals] for one in scores]
    return np.array(counts, np.int64)


def bleu_of(sums: np.ndarray) -> float:
    """Corpus BLEU, 0 to 100, of sums of `bleu_counts`, int64[10]."""
    written, expected, *ngrams = sums.tolist()
    score: float = BLEU.compute_bleu(
        ngrams[:4], ngrams[4:], written, expected, smooth_method="exp"
    ).score
    return score


def positional_accuracy(
    hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]], count: int = 4
) -> dict[str, float | list[float]]:
    """Gives the accuracy of the first and the last tokens: where each direction is strong.

    Position p is right where hypothesis and nearest reference (as in `token_errors`) have the same
    token p places from the beginning or, for "last", from the end. A position that the reference
    lacks is not counted; one that only the hypothesis lacks is wrong. The measure of the first and
    last four tokens in Zhou, Zhang and Zong 2019 (SB-NMT).

    Args:
      hypotheses: token lists (strings or ids), without markers.
      references: for each hypothesis its references, token lists.
      count: how many positions from each end.

    Returns:
      percentages: "first" and "last", each a list by position, nearest to that end first ("last"[0]
      is the very last token), and no longer than the longest reference; "first_<count>" and
      "last_<count>", all those positions together.

    Raises:
      ValueError: there is nothing to score, or an example has no reference.
    """
    check(hypotheses, references)
    nearest = [
        (hypothesis, _nearest(hypothesis, choices)[1])
        for hypothesis, choices in zip(hypotheses, references, strict=True)
    ]
    seen = np.zeros(count, np.int64)
    right = {"first": np.zeros(count, np.int64), "last": np.zeros(count, np.int64)}
    for hypothesis, reference in nearest:
        seen[: len(reference)] += 1
        for position in range(min(count, len(hypothesis), len(reference))):
            right["first"][position] += hypothesis[position] == reference[position]
            right["last"][position] += hypothesis[-1 - position] == reference[-1 - position]
    if not seen.any():
        raise ValueError("no accuracy by position: the reference of every example is empty")
    result: dict[str, float | list[float]] = {}
    for end, correct in right.items():
        result[end] = (100 * correct[seen > 0] / seen[seen > 0]).tolist()
        result[f"{end}_{count}"] = 100 * int(correct.sum()) / int(seen.sum())
    return result


def length_ratio(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Gives tokens of all hypotheses / tokens of their references; below 1 they are too short.

    Tokens are what white space separates. As in BLEU's brevity penalty an example's reference is
    the one closest in length, of two such the shorter.

    Raises:
      ValueError: there is nothing to score, an example has no reference, or the references
        closest in length are all empty.
    """
    check(hypotheses, references)
    written = expected = 0
    for hypothesis, choices in zip(hypotheses, references, strict=True):
        length = len(hypothesis.split())
        written += length
        lengths = [len(choice.split()) for choice in choices]
        expected += min(lengths, key=lambda n: (abs(n - length), n))
    if expected == 0:
        raise ValueError("no length ratio: the reference of every example is empty")
    return written / expected


def _nearest(hypothesis: Tokens, choices: Sequence[Tokens]) -> tuple[int, Tokens]:
    """Gives the edits to the nearest reference, and that reference."""
    edits = [Levenshtein.distance(hypothesis, choice) for choice in choices]
    # The longest of equals, so that an error rate does not depend on the references' order.
    best = min(range(len(choices)), key=lambda i: (edits[i], -len(choices[i])))
    return edits[best], choices[best]


def check(hypotheses: Sequence[object], references: Sequence[Sequence[object]]) -> None:
    """Refuses what no metric is defined on.

    Raises:
      ValueError: there is nothing to score, or an example has no reference.
    """
    if len(hypotheses) != len(references):
        raise ValueError(
            f"{len(hypotheses)} hypotheses but references for {len(references)} examples: "
            "give one hypothesis and one list of references for each example"
        )
    if len(hypotheses) == 0:
        raise ValueError("no hypotheses to score")
    for index, choices in enumerate(references):
        if isinstance(choices, str):
            raise ValueError(
                f"references[{index}] is a string: give a list of references, even of one"
            )
        if len(choices) == 0:
            raise ValueError(f"references[{index}] is empty: every example needs a reference")
