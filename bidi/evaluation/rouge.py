"""ROUGE, and how much of an output is its source's: metrics of titles and summaries.

Tokens are words as ROUGE's authors count them (lower case, runs of a to z and 0 to 9) or, for
scripts without spaces, characters (lower case, no white space).

Dimension letters: N examples.
"""

import importlib.metadata
from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import numpy as np
from rouge_score import tokenize

from bidi.evaluation.config import TokenKind
from bidi.evaluation.metrics import Errors, check

_MILLION = 1_000_000


class Rouge(TypedDict):
    """Means of ROUGE's F1 over the examples, 0 to 100, and what makes them comparable."""

    rouge1: float
    rouge2: float
    rougeL: float
    rouge_signature: str


class _Tokenizer:
    """What `RougeScorer` takes for a tokenizer."""

    def __init__(self, kind: TokenKind):
        self._kind = kind

    def tokenize(self, text: str) -> list[str]:
        return tokens(text, self._kind)


def tokens(text: str, kind: TokenKind) -> list[str]:
    """A text's tokens, as the module's head defines them."""
    if kind == "characters":
        return [character for character in text.lower() if not character.isspace()]
    return tokenize.tokenize(text, None)


def rouge(hypotheses: Sequence[str], references: Sequence[Sequence[str]], kind: TokenKind) -> Rouge:
    """Gives ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004) by rouge-score, without stemming.

    Of several references the one with the best F1 counts, for each measure by itself.

    Raises:
      ValueError: there is nothing to score, or an example has no reference.
    """
    names = ("rouge1", "rouge2", "rougeL")
    one, two, longest = (100 * f1_N.mean() for f1_N in _f1(hypotheses, references, kind, names))
    version = importlib.metadata.version("rouge-score")
    return {
        "rouge1": float(one),
        "rouge2": float(two),
        "rougeL": float(longest),
        "rouge_signature": f"f1|tok:{kind}|stem:no|version:rouge-score-{version}",
    }


def rouge_l_errors(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], kind: TokenKind
) -> Errors:
    """Gives what each hypothesis lacks to a ROUGE-L of 1, in millionths: 100 - ROUGE-L in percent.

    Raises:
      ValueError: as `rouge`.
    """
    (f1_N,) = _f1(hypotheses, references, kind, ("rougeL",))
    lacking_N = np.rint(_MILLION * (1 - f1_N)).astype(np.int64)
    return Errors(lacking_N, np.full_like(lacking_N, _MILLION))


def copied(hypotheses: Sequence[str], sources: Sequence[str], kind: TokenKind) -> float:
    """Gives the percentage of the hypotheses' tokens that occur in their sources; 0 of none."""
    return _share(hypotheses, sources, kind, 1, lambda ngram, known: ngram in known)


def novelty(hypotheses: Sequence[str], sources: Sequence[str], kind: TokenKind) -> float:
    """Gives the percentage of the hypotheses' bigrams that their sources lack; 0 of none.

    See, Liu and Manning 2017, "Get to the point" (section 6.2): how abstractive an output is.
    """
    return _share(hypotheses, sources, kind, 2, lambda ngram, known: ngram not in known)


def _share(
    hypotheses: Sequence[str],
    sources: Sequence[str],
    kind: TokenKind,
    length: int,
    counts: Callable[[tuple[str, ...], set[tuple[str, ...]]], bool],
) -> float:
    """100 x the n-grams that count / all n-grams of the hypotheses, repeated ones each time."""
    counted = written = 0
    for hypothesis, source in zip(hypotheses, sources, strict=True):
        known = set(_ngrams(tokens(source, kind), length))
        ngrams = _ngrams(tokens(hypothesis, kind), length)
        counted += sum(counts(ngram, known) for ngram in ngrams)
        written += len(ngrams)
    return 100 * counted / max(written, 1)


def _ngrams(words: Sequence[str], length: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[start:] for start in range(length)), strict=False))


def _f1(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    kind: TokenKind,
    names: Sequence[str],
) -> list[np.ndarray]:
    """F1 of each example for each measure, float64[N]."""
    # Here, because it imports nltk, which takes a second.
    from rouge_score.rouge_scorer import RougeScorer

    check(hypotheses, references)
    scorer = RougeScorer(names, tokenizer=_Tokenizer(kind))
    scores: list[dict[str, Any]] = [
        scorer.score_multi(choices, hypothesis)
        for hypothesis, choices in zip(hypotheses, references, strict=True)
    ]
    return [np.array([score[name].fmeasure for score in scores]) for name in names]
