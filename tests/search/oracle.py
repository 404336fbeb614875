"""What the search must return, one sentence at a time, in plain Python lists.

Written from the definitions of the search, not from its code, and twice over: `enumerate_all`
scores every sequence there is, with no beam and no pool: what a beam that is wide enough must
return. `reference_search` is the beam search of any width, literal and slow. Both read whole
prefixes from a function

    log_probs(way, own, partner) -> one log-probability for each id of the vocabulary

where `own` and `partner` are tuples of the ids written so far, in writing order, without markers;
`partner` is the prefix of the other way, or None for the coupling `none`.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence

LogProbs = Callable[[int, tuple[int, ...], tuple[int, ...] | None], Sequence[float]]

# Two numbers nearer than this may come out in either order in float32.
RESOLUTION = 1e-4


@dataclasses.dataclass(frozen=True)
class Task:
    """One sentence's search: `allowed[w]` are the ids that way w may write, its end included."""

    ways: tuple[str, ...]
    end: tuple[int, ...]
    allowed: tuple[tuple[int, ...], ...]
    max_length: int
    coupling: str = "none"
    partner_weights: str = "equal"
    hypotheses: int = 1  # K, for each way
    n_best: int = 1
    length_penalty: str = "plain"
    alpha: float = 0.0
    min_length: int = 1
    rank_unfinished: bool = False

    def texts(self, way: int) -> tuple[int, ...]:
        return tuple(token for token in sorted(self.allowed[way]) if token != self.end[way])

    def penalty(self, predictions: int) -> float:
        base = {"gnmt": (5 + predictions) / 6, "plain": float(predictions)}[self.length_penalty]
        return base**self.alpha


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """Tokens in writing order, without the end marker, whose log-probability is in `log_prob`."""

    tokens: tuple[int, ...]
    log_prob: float
    finished: bool

    @property
    def predictions(self) -> int:
        return len(self.tokens) + self.finished

    def score(self, task: Task) -> float:
        return self.log_prob / task.penalty(self.predictions)

    def reading(self, way: str) -> tuple[int, ...]:
        return self.tokens[::-1] if way == "r2l" else self.tokens


@dataclasses.dataclass(frozen=True)
class Answer:
    """`n_best[w]`: way w's hypotheses, best first, none but real ones.

    `steps`: steps after which it is proven, with a margin, that nothing can change any more.
    `winner_steps`: the same of the winner's best hypothesis.
    `close`: two numbers that decide are so near to each other that rounding may swap them.
    """

    n_best: list[list[Hypothesis]]
    winner: int
    steps: int
    close: bool
    winner_steps: int | None = None  # said by `reference_search` alone


def conditional(
    log_probs: LogProbs, task: Task, way: int, own, partners: list, scores: list | None = None
) -> list[float]:
    """What each next token is worth to `own` beside `partners`, which have these `scores`."""
    rows = [log_probs(way, own, partner) for partner in partners]
    if task.coupling != "product":
        (row,) = rows
        return list(row)
    if task.partner_weights == "equal":
        weights = [1.0] * len(rows)
    else:
        weights = [math.exp(score - max(scores)) for score in scores]
    return [
        math.log(math.fsum(w * math.exp(x) for w, x in zip(weights, column, strict=True)))
        - math.log(math.fsum(weights))
        for column in zip(*rows, strict=True)
    ]


def reference_search(log_probs: LogProbs, task: Task) -> Answer:
    ways = range(len(task.ways))
    alive = [[Hypothesis((), 0.0, False)] for _ in ways]
    pool: list[list[Hypothesis]] = [[] for _ in ways]
    close, steps, winner_steps = False, task.max_length, task.max_length
    for step in range(task.max_length):
        candidates = [_candidates(log_probs, task, way, alive, step) for way in ways]
        for way in ways:
            close |= _close_candidates(task, candidates[way])
            ended = [h for h in candidates[way][: task.hypotheses] if h.finished]
            pool[way] = sorted(pool[way] + ended, key=lambda h: -h.score(task))
            close |= _close_scores(task, pool[way])
            pool[way] = pool[way][: task.hypotheses]
            alive[way] = [h for h in candidates[way] if not h.finished][: task.hypotheses]
        if steps == task.max_length and all(_settled(task, pool[w], alive[w], step) for w in ways):
            steps = step + 1
        if winner_steps == task.max_length and _winner_settled(task, pool, alive, step):
            winner_steps = step + 1
    n_best = [_n_best(task, pool[way], alive[way]) for way in ways]
    close |= any(
        _close_scores(task, pool[way] + alive[way]) for way in ways if task.rank_unfinished
    )
    close |= _close_scores(task, [hypotheses[0] for hypotheses in n_best])
    return Answer(n_best, _winner(task, n_best), steps, close, winner_steps)


def _candidates(log_probs, task, way, alive, step) -> list[Hypothesis]:
    """Every extension of every alive hypothesis, best first."""
    candidates, scores = [], None
    for rank, hypothesis in enumerate(alive[way]):
        if task.coupling == "none":
            partners = [None]
        elif task.coupling == "paired":
            partners = [alive[1 - way][rank].tokens]
        else:
            partners = [partner.tokens for partner in alive[1 - way]]
            scores = [partner.log_prob for partner in alive[1 - way]]
        row = conditional(log_probs, task, way, hypothesis.tokens, partners, scores)
        for token in sorted(task.allowed[way]):
            log_prob = hypothesis.log_prob + row[token]
            if token != task.end[way]:
                candidates.append(Hypothesis((*hypothesis.tokens, token), log_prob, False))
            elif step >= task.min_length:
                candidates.append(Hypothesis(hypothesis.tokens, log_prob, True))
    # A stable sort: ties stay in order of (rank of the hypothesis, token id).
    return sorted(candidates, key=lambda h: -h.log_prob)


def _n_best(task, pool, alive) -> list[Hypothesis]:
    hypotheses = pool + alive  # each in its order; finished ones come first at ties
    if task.rank_unfinished:
        hypotheses = sorted(hypotheses, key=lambda h: -h.score(task))
    return hypotheses[: task.n_best]


def _winner(task, n_best) -> int:
    best = [hypotheses[0] for hypotheses in n_best]

    def key(way):
        finished = best[way].finished and not task.rank_unfinished
        return finished, best[way].score(task), -way

    return max(range(len(best)), key=key)


def _settled(task, pool, alive, step) -> bool:
    """No alive hypothesis can reach the last of the n best, were the rest certain."""
    if len(pool) < task.n_best:
        return False
    return _none_reaches(pool[task.n_best - 1].score(task), task, alive, step)


def _winner_settled(task, pool, alive, step) -> bool:
    """No alive hypothesis of any way can reach the best of all that are finished."""
    finished = [hypothesis.score(task) for of_way in pool for hypothesis in of_way]
    return bool(finished) and all(
        _none_reaches(max(finished), task, of_way, step) for of_way in alive
    )


def _none_reaches(score, task, alive, step) -> bool:
    lengths = range(step + 2, task.max_length + 1)
    return all(h.log_prob / task.penalty(n) < score - RESOLUTION for h in alive for n in lengths)


def _close_candidates(task, candidates) -> bool:
    """Sums of quantised numbers (`none`, `paired`) are exact; means of probabilities are not."""
    values = [h.log_prob for h in candidates]
    return task.coupling == "product" and any(
        a - b < RESOLUTION for a, b in itertools.pairwise(values)
    )


def _close_scores(task, hypotheses) -> bool:
    ordered = sorted(hypotheses, key=lambda h: -h.score(task))
    for a, b in itertools.pairwise(ordered):
        exact = task.coupling != "product" and (
            a.predictions == b.predictions or task.alpha == 0 or a.log_prob == b.log_prob == 0
        )
        if not exact and a.score(task) - b.score(task) < RESOLUTION:
            return True
    return False


def enumerate_all(log_probs: LogProbs, task: Task) -> Answer:
    """The n best of all sequences up to `max_length`, by each coupling's definition, all alive.

    `none`: the sum along the sequence. `product`: each token's probability averaged over all
    partner prefixes of that length, by their own if so wanted. `paired`: beside the prefix that has
    the same rank among all prefixes of that length.
    """

    @functools.cache
    def row(way, own):
        scores = None
        if task.coupling == "none":
            partners = [None]
        elif task.coupling == "paired":
            partners = [ranked(1 - way, len(own))[ranked(way, len(own)).index(own)]]
        else:
            partners = list(itertools.product(task.texts(1 - way), repeat=len(own)))
            scores = [sums(1 - way, partner)[0] for partner in partners]
        return conditional(log_probs, task, way, own, partners, scores)

    def sums(way, own):
        """Log-probabilities of the prefix and of its own prefixes, longest first."""
        terms = [row(way, own[:t])[own[t]] for t in range(len(own))]
        return list(itertools.accumulate(terms))[::-1] or [0.0]

    def order(way, own):
        # By log-probability; at ties by the parents' rank, and so on to the root; then by token id.
        return [-value for value in sums(way, own)], own

    @functools.cache
    def ranked(way, length):
        prefixes = itertools.product(task.texts(way), repeat=length)
        return sorted(prefixes, key=lambda own: order(way, own))

    n_best = []
    for way in range(len(task.ways)):
        finished = []
        for length in range(task.min_length, task.max_length):
            for own in itertools.product(task.texts(way), repeat=length):
                log_prob = sums(way, own)[0] + row(way, own)[task.end[way]]
                hypothesis = Hypothesis(own, log_prob, True)
                key = (-hypothesis.score(task), length, -log_prob, order(way, own))
                finished.append((key, hypothesis))
        unfinished = [
            Hypothesis(own, sums(way, own)[0], False) for own in ranked(way, task.max_length)
        ]
        finished = [hypothesis for _, hypothesis in sorted(finished, key=lambda pair: pair[0])]
        n_best.append(_n_best(task, finished, unfinished))
    close = any(_close_scores(task, hypotheses) for hypotheses in n_best)
    close |= _close_scores(task, [hypotheses[0] for hypotheses in n_best])
    return Answer(n_best, _winner(task, n_best), task.max_length, close)
