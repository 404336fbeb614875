"""Is one system better than another on these examples, or is it luck? Do they err together?

Dimension letters: N examples, K counts of an example, M resamples.
"""

from collections.abc import Callable
from typing import TypedDict

import numpy as np

from bidi.evaluation.metrics import Errors, bleu_of

_CONFIDENCE = 95  # percent of the resampled differences that lie within the interval


class Comparison(TypedDict):
    """System a's rate minus system b's: of errors below zero where a is better, of BLEU above.

    Fields:
      difference: over the examples as they are; of error rates, in points of a percent.
      low, high: the 95 % interval of the difference.
      p: two-sided; the interval holds zero where p is above 0.05 (but for rounding to a resample).
    """

    difference: float
    low: float
    high: float
    p: float


def paired_bootstrap(
    errors_a: Errors, errors_b: Errors, *, samples: int = 10_000, seed: int
) -> Comparison:
    """Compares two systems by resampling the examples that both were scored on.

    The percentile bootstrap over whole examples (Koehn 2004, "Statistical significance tests for
    machine translation evaluation"), each rate a ratio of sums as in `Errors.percent`. In plain
    numpy, because scipy.stats.bootstrap gives no p, and its default interval (BCa) would take N
    further statistics of N examples; a loop over resamples keeps memory at N.

    Args:
      errors_a: of system a, by `metrics.word_errors` or `metrics.token_errors`.
      errors_b: of system b on the same examples in the same order.
      samples: number of resamples; p is never below 2 / (samples + 1).
      seed: of the resampling; the same seed gives the same answer.

    Raises:
      ValueError: no examples, unequal numbers of them, or denominators that do not add up to more
        than 0, or did not in a resample, where most are 0 (references that are empty).
    """
    # --> [4, N]: both numerators, both denominators
    return _bootstrap(_stack(errors_a, errors_b), _difference, samples, seed)


def paired_bootstrap_bleu(
    counts_a_NK: np.ndarray, counts_b_NK: np.ndarray, *, samples: int = 10_000, seed: int
) -> Comparison:
    """As `paired_bootstrap`, of corpus BLEU; above zero where a is better.

    sacrebleu's own paired test gives a p but no interval of the difference.

    Args:
      counts_a_NK: of system a, by `metrics.bleu_counts`.
      counts_b_NK: of system b on the same examples in the same order.
      samples: as there.
      seed: as there.

    Raises:
      ValueError: no examples, or unequal numbers of them.
    """
    if counts_a_NK.shape != counts_b_NK.shape or not len(counts_a_NK):
        raise ValueError(
            "both systems need the same examples, and at least one: got "
            f"{len(counts_a_NK)} for a, {len(counts_b_NK)} for b"
        )
    counts = counts_a_NK.shape[1]

    def difference(sums: np.ndarray) -> float:
        return bleu_of(sums[:counts]) - bleu_of(sums[counts:])

    return _bootstrap(np.hstack([counts_a_NK, counts_b_NK]).T, difference, samples, seed)


def bootstrap_ratio(
    numerators_N: np.ndarray, denominators_N: np.ndarray, *, samples: int = 10_000, seed: int
) -> Comparison:
    """As `paired_bootstrap`, where each example's difference of a and b is known at once.

    Args:
      numerators_N: by how much a costs more than b, summed within an example.
      denominators_N: how many terms that sum has, the same for a and b; above 0.
      samples: as there.
      seed: as there.

    Returns:
      The sum of numerators over the sum of denominators, and its interval.

    Raises:
      ValueError: no examples, or a denominator that is not positive.
    """
    if not (len(denominators_N) and (denominators_N > 0).all()):
        raise ValueError("a ratio needs at least one example, and no denominator of 0")
    return _bootstrap(np.stack([numerators_N, denominators_N]), _ratio, samples, seed)


def _bootstrap(
    counts_KN: np.ndarray, statistic: Callable[[np.ndarray], float], samples: int, seed: int
) -> Comparison:
    """Resamples the examples; `statistic` is given the sums of K counts."""
    examples = counts_KN.shape[1]
    rng = np.random.default_rng(seed)
    differences_M = np.empty(samples)
    for m in range(samples):
        drawn_N = rng.integers(examples, size=examples)
        # How often each example was drawn. Sums stay integers: equal systems differ by exactly 0.
        times_N = np.bincount(drawn_N, minlength=examples)
        with np.errstate(divide="ignore", invalid="ignore"):
            differences_M[m] = statistic(counts_KN @ times_N)
    if not np.isfinite(differences_M).all():
        raise ValueError("too many denominators are 0 (empty references?): leave such examples out")
    tail = (100 - _CONFIDENCE) / 2
    low, high = np.percentile(differences_M, [tail, 100 - tail])
    one_side = min(int((differences_M <= 0).sum()), int((differences_M >= 0).sum()))
    return {
        "difference": float(statistic(counts_KN.sum(axis=1))),
        "low": float(low),
        "high": float(high),
        # The sample at hand counts as one more: a p of exactly 0 is never shown by resampling.
        "p": min(1.0, 2 * (one_side + 1) / (samples + 1)),
    }


class Overlap(TypedDict):
    """Where two systems are wrong, in percent of the examples.

    Fields:
      both, only_a, only_b: wrong in both systems, in one of them alone.
      correlation: phi, the correlation of being wrong in a and in b: 1 where both err on the same
        examples, 0 where each errs on its own; NaN where a system is right, or wrong, throughout.
    """

    both: float
    only_a: float
    only_b: float
    correlation: float


def error_overlap(errors_a: Errors, errors_b: Errors) -> Overlap:
    """Says whether two systems err on the same examples: the less, the more agreement may gain.

    Args:
      errors_a: of system a; an example counts as wrong if it has any error.
      errors_b: of system b on the same examples in the same order.

    Raises:
      ValueError: as `paired_bootstrap`.
    """
    wrong_a_N, wrong_b_N = _stack(errors_a, errors_b)[:2] > 0
    variance = wrong_a_N.var() * wrong_b_N.var()
    covariance = (wrong_a_N & wrong_b_N).mean() - wrong_a_N.mean() * wrong_b_N.mean()
    return {
        "both": float(100 * (wrong_a_N & wrong_b_N).mean()),
        "only_a": float(100 * (wrong_a_N & ~wrong_b_N).mean()),
        "only_b": float(100 * (wrong_b_N & ~wrong_a_N).mean()),
        "correlation": float(covariance / variance**0.5) if variance else float("nan"),
    }


def _difference(sums_4: np.ndarray) -> float:
    wrong_a, wrong_b, total_a, total_b = sums_4
    return 100 * (wrong_a / total_a - wrong_b / total_b)


def _ratio(sums_2: np.ndarray) -> float:
    return sums_2[0] / sums_2[1]


def _stack(errors_a: Errors, errors_b: Errors) -> np.ndarray:
    """Gives int64[4, N]: numerators of a and b, denominators of a and b."""
    numbers = [len(column) for errors in (errors_a, errors_b) for column in errors]
    if len(set(numbers)) != 1 or numbers[0] == 0:
        raise ValueError(
            "both systems need the same examples, and at least one: got "
            f"{numbers[0]} numerators and {numbers[1]} denominators for a, "
            f"{numbers[2]} and {numbers[3]} for b"
        )
    for name, errors in (("a", errors_a), ("b", errors_b)):
        if not (min(errors.denominators) >= 0 < sum(errors.denominators)):
            raise ValueError(
                f"system {name} has denominators below 0, or none above (no references?)"
            )
    return np.stack(
        [
            errors_a.numerators,
            errors_b.numerators,
            errors_a.denominators,
            errors_b.denominators,
        ]
    )
