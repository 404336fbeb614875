"""How a trained model is scored."""

import dataclasses
from typing import Literal

import gin

from bidi import ranges

TokenKind = Literal["words", "characters"]


@gin.configurable("Evaluation")
@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """The scoring.

    Attributes:
        metric: what choices on the validation split are made by: word error rate (the whole output
            right or wrong, as for pronunciations), BLEU or, for titles and summaries, ROUGE-L;
            measures of titles are reported only with the last.
        tokens: what is counted: words, or characters (Chinese, whose BLEU is sacrebleu's `zh`).
        batch_tokens: source tokens, padding included, that are searched at once by all devices.
            None: 1,024 a device on a CPU, whose caches do not hold many, 4,096 elsewhere.
        samples: outputs of the split, from its first, that are shown in full.
    """

    metric: Literal["wer", "bleu", "rouge"] = "bleu"
    tokens: TokenKind = "words"
    batch_tokens: int | None = None
    samples: int = 5

    def __post_init__(self):
        ranges.check(self, "Evaluation", "batch_tokens", least=1)
        ranges.check(self, "Evaluation", "samples", least=0)


@gin.configurable("Agreement")
@dataclasses.dataclass(frozen=True)
class AgreementConfig:
    """Rescoring of n-best lists by two scores; see `bidi.evaluation.agreement`.

    Attributes:
        rescore: whether outputs are chosen so.
        n_best: hypotheses of each direction that are candidates.
        weights: choices for the weight of the first score (L2R, or that of the first of two models)
            against the second.
        alphas: choices for the exponent of the length penalty over the sum.
        interact: whether the streams of a model with interaction read each other when they score
            a candidate. Both then hold the candidate, each shows the other its labels, and the
            scores are no probabilities of it: to be reported beside the sound ones, not instead.
    """

    rescore: bool = False
    n_best: int = 4
    weights: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.7)
    alphas: tuple[float, ...] = (0.0, 0.3, 0.6, 1.0, 1.5, 2.0)
    interact: bool = False

    def __post_init__(self):
        ranges.check(self, "Agreement", "n_best", least=1)
        for name in ("weights", "alphas"):
            if not getattr(self, name):
                raise ValueError(f"Agreement.{name} = (): name one choice at least")
