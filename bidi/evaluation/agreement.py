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
    """How two scores become one: (weight * first + (1 - weight) * second) / length^alpha."""

    weight: float
    alpha: float


@dataclasses.dataclass(frozen=True)
class Candidates:
    """What may be chosen for one source.

    Attributes:
        hypotheses: without repeats; those that finished, or all where none did.
        first: float64 [n], log-probabilities by the first scorer.
        second: float64 [n], by the second.
    """

    hypotheses: tuple[Hypothesis, ...]
    first: np.ndarray
    second: np.ndarray

    def choose(self, choice: Choice) -> Hypothesis | None:
        """The hypothesis with the best sum, None for an empty source."""
        if not self.hypotheses:
            return None
        lengths = np.array([len(hypothesis.tokens) + 1 for hypothesis in self.hypotheses])
        sums = choice.weight * self.first + (1 - choice.weight) * self.second
        return self.hypotheses[int(np.argmax(sums / lengths**choice.alpha))]


def candidates(
    sources: Sequence[str],
    found: Sequence[Sequence[Found]],
    generators: Sequence[Generator],
) -> list[Candidates]:
    """Pools the n-best lists of one or two models, and scores them.

    Args:
        sources: texts.
        found: what each model's search found for them.
        generators: the models; one of two directions, or two of one each.
    """
    pooled = [_pool(of_source) for of_source in zip(*found, strict=True)]
    outputs = [[hypothesis.tokens for hypothesis in pool] for pool in pooled]
    scores = [generator.score(sources, outputs) for generator in generators]
    result = []
    for pool, *of_models in zip(pooled, *scores, strict=True):
        first, second = (array for of_model in of_models for array in of_model.values())
        result.append(Candidates(pool, first.astype(float), second.astype(float)))
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


def _pool(found: Sequence[Found]) -> tuple[Hypothesis, ...]:
    first: dict[tuple[int, ...], Hypothesis] = {}
    for hypothesis in itertools.chain.from_iterable(one.all for one in found):
        first.setdefault(hypothesis.tokens, hypothesis)
    pool = tuple(first.values())
    return tuple(hypothesis for hypothesis in pool if hypothesis.finished) or pool
