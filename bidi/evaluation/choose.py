"""From what was searched to what is given out: the better direction, or agreement of both."""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Sequence

from bidi.data.prepared import Prepared
from bidi.data.sources import Example
from bidi.evaluation import agreement, metrics
from bidi.evaluation.agreement import Choice
from bidi.evaluation.config import AgreementConfig, EvaluationConfig
from bidi.evaluation.generate import Found, Generator, Hypothesis, Tally
from bidi.search.beam_search import SearchConfig

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class System:
    """One model, or two that agree, and how their outputs are searched and chosen.

    Attributes:
        generators: the model and, if there is one, its partner.
        steps: of the checkpoint of each.
        search: how outputs are searched.
        agreement: how they are rescored.
        evaluation: what choices are made by.
        choice: how scores are summed; None where the better direction's best is taken.
    """

    generators: tuple[Generator, ...]
    steps: tuple[int, ...]
    search: SearchConfig
    agreement: AgreementConfig
    evaluation: EvaluationConfig
    choice: Choice | None = None

    @property
    def rescores(self) -> bool:
        """Whether outputs are chosen by both directions."""
        return self.agreement.rescore

    def find(self, sources: Sequence[str], tally: Tally | None = None) -> list[list[Found]]:
        """What each model's search finds for the sources."""
        found = []
        for generator in self.generators:
            config = self.search
            if self.rescores:
                ways = len(generator.streams.directions)
                config = agreement.search_config(self.search, self.agreement, ways)
            found.append(generator.search(sources, config, tally))
        return found

    def choose(
        self, sources: Sequence[str], found: Sequence[Sequence[Found]]
    ) -> list[Hypothesis | None]:
        """The output of each source."""
        if self.choice is None:
            return [one.winner for one in found[0]]
        pools = agreement.candidates(sources, found, self.generators)
        return [pool.choose(self.choice) for pool in pools]

    def tuned(self, prepared: Prepared) -> "System":
        """With the choice that does best on the validation split."""
        examples = prepared.examples("validation")
        sources = [example.source for example in examples]
        pools = agreement.candidates(sources, self.find(sources), self.generators)
        choice, loss = agreement.tune(
            pools, self.agreement, lambda chosen: self.loss(chosen, examples)
        )
        log.info("Agreement on the validation split: %s, loss %.3f", choice, loss)
        return dataclasses.replace(self, choice=choice)

    def loss(self, chosen: Sequence[Hypothesis | None], examples: Sequence[Example]) -> float:
        """What choices are made by: word error rate, or BLEU below zero."""
        texts = [self.generators[0].text(hypothesis) for hypothesis in chosen]
        references = [example.targets for example in examples]
        if self.evaluation.metric == "wer":
            return metrics.word_error_rate(texts, references)
        return -metrics.bleu_chrf(texts, references)["bleu"]

    def save_choice(self, path: pathlib.Path) -> None:
        """Keeps the choice, with what it was made for."""
        if self.choice is not None:
            path.write_text(
                json.dumps({**self._key(), **dataclasses.asdict(self.choice)}, indent=1)
            )

    def with_saved_choice(self, path: pathlib.Path) -> "System | None":
        """With the choice kept, None where there is none for this very system."""
        if not path.is_file():
            return None
        kept = json.loads(path.read_text())
        choice = Choice(kept.pop("weight"), kept.pop("alpha"))
        if kept != json.loads(json.dumps(self._key())):
            return None
        return dataclasses.replace(self, choice=choice)

    def _key(self) -> dict[str, object]:
        return {
            "checkpoints": self.steps,
            "search": dataclasses.asdict(self.search),
            "agreement": dataclasses.asdict(self.agreement),
            "metric": self.evaluation.metric,
        }
