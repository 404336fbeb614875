"""Agreement: pooled n-best outputs, each of them scored twice; the best sum wins.

The two scores are those of a model's two directions, or of two models, where the score of a model
of both directions is the mean of its directions' (Liu et al. 2016, "Agreement on target-
bidirectional neural machine translation"). Two models of the same direction are an ensemble by
rescoring: the control for two of different directions.

The scores are teacher-forced and by default taken without interaction: a stream that reads the
other has seen part of what it scores.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from bidi.evaluation.config import AgreementConfig
from bidi.evaluation.found import Found, Hypothesis
from bidi.evaluation.generate import Generator


@dataclasses.dataclass(frozen=True)
class Choice:
    """How two scores become one: (weight * first + (1 - weight) * second) / length^alpha."""

    weight: float
    alpha: float


@dataclasses.dataclass(frozen=True)
class Candidates:
    """What may be chosen for one source.

    Attributes:
        hypotheses: without repeats; those that finished, or all where none did.
        first: float64 [n], log-probabilities from left to right, or by the first of two models.
        second: float64 [n], from right to left, or by the second model.
    """

    hypotheses: tuple[Hypothesis, ...]
    first: np.ndarray
    second: np.ndarray

    def ranked(self, choice: Choice) -> tuple[Hypothesis, ...]:
        """The hypotheses, that with the best sum first; the sum is their score."""
        lengths = np.array([len(hypothesis.tokens) + 1 for hypothesis in self.hypotheses])
        sums = choice.weight * self.first + (1 - choice.weight) * self.second
        scores = sums / lengths**choice.alpha
        return tuple(
            dataclasses.replace(self.hypotheses[index], score=float(scores[index]))
            for index in np.argsort(-scores, kind="stable")
        )

    def choose(self, choice: Choice) -> Hypothesis | None:
        """The hypothesis with the best sum, None for an empty source."""
        return self.ranked(choice)[0] if self.hypotheses else None


def candidates(
    sources: Sequence[str],
    found: Sequence[Found],
    generators: Sequence[Generator],
    *,
    interact: bool,
) -> list[Candidates]:
    """Pools the n-best lists of what was found, and scores them.

    Args:
        sources: texts.
        found: what was found for them.
        generators: the models; one of two scores, or two of any.
        interact: whether streams read each other while they score, see `Generator.score`.
    """
    pooled = [_pool(one) for one in found]
    outputs = [[hypothesis.tokens for hypothesis in pool] for pool in pooled]
    scores = [generator.score(sources, outputs, interact) for generator in generators]
    return [
        Candidates(pool, *_two_scores(of_models))
        for pool, *of_models in zip(pooled, *scores, strict=True)
    ]


def _two_scores(of_models: Sequence[dict[str, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    if len(of_models) == 1:
        first, second = of_models[0].values()
        return first.astype(float), second.astype(float)
    first, second = (np.mean(list(named.values()), axis=0, dtype=float) for named in of_models)
    return first, second


def tune(
    pools: Sequence[Candidates],
    agreement: AgreementConfig,
    loss: Callable[[list[Hypothesis | None]], float],
) -> tuple[Choice, float]:
    """The choice with the lowest loss, to be made on the validation split, and that loss."""
    grid = [Choice(*values) for values in itertools.product(agreement.weights, agreement.alphas)]
    losses = [loss([pool.choose(choice) for pool in pools]) for choice in grid]
    best = int(np.argmin(losses))
    return grid[best], losses[best]


def _pool(found: Found) -> tuple[Hypothesis, ...]:
    return tuple(hypothesis for hypothesis in found.all if hypothesis.finished) or found.all
