"""What a search finds: hypotheses, those of one source, and what it took."""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """One output.

    Attributes:
        tokens: ids in reading order, without markers.
        direction: which stream wrote it, or `joint`; with the model's number where `together` gave
            it one.
        log_prob: of tokens and end marker, by that stream.
        score: `log_prob` over the length penalty; of what was rescored, what it was ranked by.
        finished: whether the stream wrote its end marker.
    """

    tokens: tuple[int, ...]
    direction: str
    log_prob: float
    score: float
    finished: bool


@dataclasses.dataclass(frozen=True)
class Found:
    """What the search found for one source.

    Attributes:
        n_best: the hypotheses by their `direction`, best first; no list is empty, unless the source
            is. Of a search for the winner alone, its list and nothing else in it.
        winner: the best of the lists' best, None for an empty source.
    """

    n_best: dict[str, tuple[Hypothesis, ...]]
    winner: Hypothesis | None

    @property
    def all(self) -> tuple[Hypothesis, ...]:
        """The hypotheses of all lists, without repeats, better ones first."""
        first: dict[tuple[int, ...], Hypothesis] = {}
        hypotheses = [hypothesis for listed in self.n_best.values() for hypothesis in listed]
        for hypothesis in sorted(hypotheses, key=lambda h: (not h.finished, -h.score)):
            first.setdefault(hypothesis.tokens, hypothesis)
        return tuple(first.values())

    @property
    def winner_alone(self) -> "Found":
        """The winner, and nothing of the lists but it."""
        if self.winner is None:
            return Found({}, None)
        return Found({self.winner.direction: (self.winner,)}, self.winner)


def together(found: Sequence[Found]) -> Found:
    """What models found for one source, as if they were one.

    Where two of them write the same direction, all are numbered: `l2r (1)`, `l2r (2)`.
    """
    directions = [direction for one in found for direction in one.n_best]
    if len(set(directions)) < len(directions):
        found = [_numbered(one, number) for number, one in enumerate(found, start=1)]
    winners = [one.winner for one in found if one.winner]
    return Found(
        {direction: listed for one in found for direction, listed in one.n_best.items()},
        max(winners, key=lambda h: (h.finished, h.score), default=None),
    )


def _numbered(found: Found, number: int) -> Found:
    def numbered(hypothesis: Hypothesis) -> Hypothesis:
        return dataclasses.replace(hypothesis, direction=f"{hypothesis.direction} ({number})")

    return Found(
        {f"{name} ({number})": tuple(map(numbered, h)) for name, h in found.n_best.items()},
        found.winner and numbered(found.winner),
    )


@dataclasses.dataclass
class Tally:
    """What a search did.

    Attributes:
        sentences: searched.
        batches: that they were laid in, those of the second searches too.
        row_steps_run: steps of the batches' loops times their rows, empty rows included.
        row_steps_needed: the same up to where each sentence was done, by the search that found it.
        searched_again: how often a sentence was given up, since the cache had too little room for
            it, and searched again.
        truncated: sources that were cut to length.
    """

    sentences: int = 0
    batches: int = 0
    row_steps_run: int = 0
    row_steps_needed: int = 0
    searched_again: int = 0
    truncated: int = 0

    def add(self, other: "Tally") -> None:
        """Adds what another search did."""
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))
