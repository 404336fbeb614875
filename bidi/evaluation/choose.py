"""From what was searched to what is given out: the better direction, or agreement of two scores."""

import dataclasses
import json
import logging
from collections.abc import Sequence
from typing import Any

from etils import epath

from bidi.data.prepared import Prepared
from bidi.data.sources import Example
from bidi.evaluation import agreement, metrics, rouge
from bidi.evaluation.agreement import Candidates, Choice
from bidi.evaluation.config import AgreementConfig, EvaluationConfig
from bidi.evaluation.found import Found, Hypothesis, Tally, together
from bidi.evaluation.generate import Generator
from bidi.files import relative, write_whole
from bidi.search.config import SearchConfig

log = logging.getLogger(__name__)

_VALIDATION = "validation"


@dataclasses.dataclass(frozen=True)
class System:
    """One model, or two that agree, and how their outputs are searched and chosen.

    Attributes:
        generators: the model and, if there is one, its partner.
        workdirs: of each.
        steps: of the checkpoint of each.
        searches: how each searches.
        agreement: how they are rescored.
        evaluation: what choices are made by.
        choice: how scores are summed; None where the better direction's best is taken.
    """

    generators: tuple[Generator, ...]
    workdirs: tuple[str, ...]
    steps: tuple[int, ...]
    searches: tuple[SearchConfig, ...]
    agreement: AgreementConfig
    evaluation: EvaluationConfig
    choice: Choice | None = None

    @property
    def search(self) -> SearchConfig:
        """How the first model searches; a second one differs in the coupling alone."""
        return self.searches[0]

    @property
    def rescores(self) -> bool:
        """Whether outputs are chosen by the sum of two scores."""
        return self.agreement.rescore

    def find(
        self, sources: Sequence[str], tally: Tally | None = None, winner_only: bool = False
    ) -> list[Found]:
        """What the search finds for the sources, in the directions of both models if it is two.

        `winner_only`: see `Generator.search`.

        Raises:
            ValueError: the winner alone is asked for where outputs are rescored, which takes lists.
        """
        if winner_only and self.rescores:
            raise ValueError("winner_only = True, but outputs are chosen from lists by rescoring")
        found, tallies = [], [Tally() for _ in self.generators]
        for generator, config, its_tally in zip(
            self.generators, self.searches, tallies, strict=True
        ):
            found.append(generator.search(sources, config, its_tally, winner_only))
        if tally is not None:
            of_all = Tally()
            for its_tally in tallies:
                of_all.add(its_tally)
            # All models are given the same sources.
            of_all.sentences = len(sources)
            of_all.truncated = max(its_tally.truncated for its_tally in tallies)
            tally.add(of_all)
        return [together(of_models) for of_models in zip(*found, strict=True)]

    @property
    def candidate_count(self) -> int:
        """How many outputs of a source agreement chooses among, if none is found twice."""
        return sum(
            len(generator.streams.writers) * config.n_best
            for generator, config in zip(self.generators, self.searches, strict=True)
        )

    def rank(self, sources: Sequence[str], found: Sequence[Found]) -> list[tuple[Hypothesis, ...]]:
        """The outputs of each source without repeats, best first; none for an empty source."""
        if self.choice is None:
            return [_winner_first(one, self.search.rank_unfinished) for one in found]
        pools = self._pools(sources, found)
        return [pool.ranked(self.choice) for pool in pools]

    def choose(self, sources: Sequence[str], found: Sequence[Found]) -> list[Hypothesis | None]:
        """The best output of each source, None for an empty one."""
        return [ranked[0] if ranked else None for ranked in self.rank(sources, found)]

    def tuned(self, prepared: Prepared) -> "System":
        """With the choice that does best on the validation split."""
        examples = prepared.examples("validation")
        sources = [example.source for example in examples]
        pools = self._pools(sources, self.find(sources))
        choice, loss = agreement.tune(
            pools, self.agreement, lambda chosen: self.loss(chosen, examples)
        )
        log.info("Agreement on the validation split: %s, loss %.3f", choice, loss)
        return dataclasses.replace(self, choice=choice)

    def loss(self, chosen: Sequence[Hypothesis | None], examples: Sequence[Example]) -> float:
        """What choices are made by: word error rate, BLEU below zero, or 100 - ROUGE-L."""
        texts = [self.generators[0].text(hypothesis) for hypothesis in chosen]
        references = [example.targets for example in examples]
        if self.evaluation.metric == "wer":
            return metrics.word_error_rate(texts, references)
        if self.evaluation.metric == "rouge":
            return rouge.rouge_l_errors(texts, references, self.evaluation.tokens).percent
        counts = metrics.bleu_counts(texts, references, self.evaluation.tokens)
        return -metrics.bleu_of(counts.sum(axis=0))

    def save_choice(self, path: epath.Path, validation: str) -> None:
        """Keeps the choice, with what it was made for, beside those of other systems.

        `validation`: the digest of the split that it was made by.
        """
        if self.choice is not None:
            key = self._key()
            others = [kept for kept in _kept_choices(path) if not _fits(kept, key)]
            mine = key | {_VALIDATION: validation} | dataclasses.asdict(self.choice)
            write_whole(path, json.dumps([*others, mine], indent=1))

    def saved_choice(self, path: epath.Path, validation: str | None = None) -> Choice | None:
        """The choice kept, None where there is none for this very system.

        `validation`: the digest of the split that it must have been made by, if given.
        """
        key = self._key()
        for kept in _kept_choices(path):
            if _fits(kept, key) and validation in (None, kept.get(_VALIDATION)):
                return Choice(kept["weight"], kept["alpha"])
        return None

    def _pools(self, sources: Sequence[str], found: Sequence[Found]) -> list[Candidates]:
        interact = self.agreement.interact
        return agreement.candidates(sources, found, self.generators, interact=interact)

    def _key(self) -> dict[str, Any]:
        """What a choice is made for, as JSON gives it back."""
        key = {
            # Relative: they may be moved together.
            "workdirs": [relative(path, self.workdirs[0]) for path in self.workdirs],
            "checkpoints": self.steps,
            "models": [generator.identity for generator in self.generators],
            "search": [dataclasses.asdict(search) for search in self.searches],
            "agreement": dataclasses.asdict(self.agreement),
            "metric": self.evaluation.metric,
            "tokens": self.evaluation.tokens,
        }
        return json.loads(json.dumps(key))


def _fits(kept: dict[str, Any], key: dict[str, Any]) -> bool:
    return key == {name: value for name, value in kept.items() if name in key}


def _kept_choices(path: epath.Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text()) if path.is_file() else []


def _winner_first(found: Found, rank_unfinished: bool) -> tuple[Hypothesis, ...]:
    """`rank_unfinished`: whether the others compete by score alone, see `SearchConfig`."""
    if found.winner is None:
        return ()
    others = [hypothesis for hypothesis in found.all if hypothesis.tokens != found.winner.tokens]
    if rank_unfinished:
        others.sort(key=lambda hypothesis: -hypothesis.score)
    return (found.winner, *others)
