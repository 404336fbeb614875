"""Agreement: the n-best outputs of both directions, each scored by both; the best sum wins.

The scores are teacher-forced and taken without interaction: a stream that reads the other has seen
part of what it scores. Works with two models too (Liu et al. 2016, "Agreement on target-
bidirectional neural machine translation").
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from bidi.evaluation.config import AgreementConfig
from bidi.evaluation.generate import Found, Generator, Hypothesis
from bidi.search.beam_search import SearchConfig


@dataclasses.dataclass(frozen=True)
class Choice:
    """How two scores become one: (weight * l2r + (1 - weight) * r2l) / length^alpha."""

    weight: float
    alpha: float


@dataclasses.dataclass(frozen=True)
class Candidates:
    """What may be chosen for one source.

    Attributes:
        hypotheses: without repeats; those that finished, or all where none did.
        l2r: float64 [n], log-probabilities from left to right.
        r2l: float64 [n], from right to left.
    """

    hypotheses: tuple[Hypothesis, ...]
    l2r: np.ndarray
    r2l: np.ndarray

    def ranked(self, choice: Choice) -> tuple[Hypothesis, ...]:
        """The hypotheses, that with the best sum first."""
        lengths = np.array([len(hypothesis.tokens) + 1 for hypothesis in self.hypotheses])
        sums = choice.weight * self.l2r + (1 - choice.weight) * self.r2l
        order = np.argsort(-sums / lengths**choice.alpha, kind="stable")
        return tuple(self.hypotheses[index] for index in order)

    def choose(self, choice: Choice) -> Hypothesis | None:
        """The hypothesis with the best sum, None for an empty source."""
        return self.ranked(choice)[0] if self.hypotheses else None


def candidates(
    sources: Sequence[str],
    found: Sequence[Found],
    generators: Sequence[Generator],
) -> list[Candidates]:
    """Pools the n-best lists of both directions, and scores them.

    Args:
        sources: texts.
        found: what was found for them.
        generators: the models; one of two directions, or two of one each.
    """
    pooled = [_pool(one) for one in found]
    outputs = [[hypothesis.tokens for hypothesis in pool] for pool in pooled]
    scores = [generator.score(sources, outputs) for generator in generators]
    result = []
    for pool, *of_models in zip(pooled, *scores, strict=True):
        by_direction = {name: array for of_model in of_models for name, array in of_model.items()}
        l2r, r2l = (by_direction[name].astype(float) for name in ("l2r", "r2l"))
        result.append(Candidates(pool, l2r, r2l))
    return result


def search_config(config: SearchConfig, agreement: AgreementConfig, ways: int) -> SearchConfig:
    """The search that gives the candidates: as many hypotheses as asked, or as there are."""
    hypotheses = config.make_coupling(ways).hypotheses
    return dataclasses.replace(config, n_best=min(agreement.n_best, hypotheses))


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
