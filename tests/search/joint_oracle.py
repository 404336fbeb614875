"""What the coupling `joint` must return, as `tests.search.oracle` for the others.

A prefix is a pair (left, right) of what each end has written, in writing order. Both ends write a
token at each step; the left one may write one more than the right one has. Outputs are in reading
order, left + reversed right. Vocabulary, markers and tables are as in the other oracle.
"""

import dataclasses
import itertools

from tests.search.oracle import (
    RESOLUTION,
    Answer,
    Hypothesis,
    LogProbs,
    Task,
    _close_scores,
    _n_best,
)

LEFT, RIGHT = 0, 1


@dataclasses.dataclass(frozen=True)
class Pair:
    """A prefix; `met`: the right end has ended. `key` orders prefixes of a step, ties included."""

    left: tuple[int, ...]
    right: tuple[int, ...]
    met: bool
    log_prob: float
    key: tuple = ()


def max_steps(task: Task) -> int:
    return (task.max_length + 1) // 2


def output_log_prob(log_probs: LogProbs, task: Task, output: tuple[int, ...]) -> float:
    """By the definition: every prediction of each end, given what both had written before."""
    middle = (len(output) + 1) // 2
    left, right = output[:middle], output[middle:][::-1]
    total = 0.0
    for step, token in enumerate((*left, task.end[LEFT])):
        total += log_probs(LEFT, left[:step], right[:step])[token]
    for step, token in enumerate((*right, task.end[RIGHT])):
        total += log_probs(RIGHT, right[:step], left[:step])[token]
    return total


def _extensions(log_probs: LogProbs, task: Task, pair: Pair, last: bool):
    """Pairs that go on, and the output that ends here or None."""
    left_row = log_probs(LEFT, pair.left, pair.right)
    right_row = log_probs(RIGHT, pair.right, pair.left)
    end = left_row[task.end[LEFT]]
    if pair.met:
        log_prob = pair.log_prob + end
        return [], Pair(pair.left, pair.right, True, log_prob, (-log_prob, pair.key, -1))
    step, ended = len(pair.left), None
    if 2 * step >= task.min_length:
        log_prob = pair.log_prob + (end + right_row[task.end[RIGHT]])
        ended = Pair(pair.left, pair.right, True, log_prob, (-log_prob, pair.key, -1))
    may_meet = 2 * step + 1 >= task.min_length and not last
    rights = [*task.texts(RIGHT), *([task.end[RIGHT]] if may_meet else [])]
    lefts = sorted(task.texts(LEFT), key=lambda token: (-left_row[token], token))
    rights = sorted(rights, key=lambda token: (-right_row[token], token))
    grown = []
    for (i, left), (j, right) in itertools.product(enumerate(lefts), enumerate(rights)):
        log_prob = pair.log_prob + (left_row[left] + right_row[right])
        key = (-log_prob, pair.key, i, j)
        met = right == task.end[RIGHT]
        written = pair.right if met else (*pair.right, right)
        grown.append(Pair((*pair.left, left), written, met, log_prob, key))
    return grown, ended


def _hypothesis(pair: Pair, finished: bool) -> Hypothesis:
    return Hypothesis((*pair.left, *pair.right[::-1]), pair.log_prob, finished)


def reference_search(log_probs: LogProbs, task: Task) -> Answer:
    """The beam search, literal and slow."""
    alive = [Pair((), (), False, 0.0)]
    pool: list[Hypothesis] = []
    close, steps = False, max_steps(task)
    for step in range(max_steps(task)):
        grown, ended = [], []
        for pair in alive:
            its, end = _extensions(log_probs, task, pair, step + 1 == max_steps(task))
            grown += its
            ended += [end] if end else []
        first = sorted(grown + ended, key=_key)[: task.hypotheses]
        finished = [_hypothesis(pair, True) for pair in first if any(pair is e for e in ended)]
        pool = sorted(pool + finished, key=lambda h: -h.score(task))
        close |= _close_scores(task, pool)
        pool = pool[: task.hypotheses]
        # Ranks stand for the keys of parents: equal keys cannot be, but short ones compare faster.
        alive = [
            dataclasses.replace(pair, key=(rank,))
            for rank, pair in enumerate(sorted(grown, key=_key)[: task.hypotheses])
        ]
        if steps == max_steps(task) and _settled(task, pool, alive, step):
            steps = step + 1
    unfinished = [_hypothesis(pair, False) for pair in alive]
    close |= task.rank_unfinished and _close_scores(task, pool + unfinished)
    return Answer([_n_best(task, pool, unfinished)], 0, steps, close)


def _key(pair: Pair) -> tuple:
    return pair.key


def _settled(task: Task, pool: list[Hypothesis], alive: list[Pair], step: int) -> bool:
    if len(pool) < task.n_best:
        return False
    last = pool[task.n_best - 1].score(task)
    lengths = range(2 * step + 2, 2 * max_steps(task) + 1)
    return all(p.log_prob / task.penalty(n) < last - RESOLUTION for p in alive for n in lengths)


def enumerate_all(log_probs: LogProbs, task: Task) -> Answer:
    """The n best of all outputs there are, all prefixes alive."""
    prefixes, finished = [Pair((), (), False, 0.0)], []
    for step in range(max_steps(task)):
        extended = [
            _extensions(log_probs, task, pair, step + 1 == max_steps(task)) for pair in prefixes
        ]
        prefixes = sorted(itertools.chain.from_iterable(grown for grown, _ in extended), key=_key)
        ends = sorted((end for _, end in extended if end), key=_key)
        finished += [_hypothesis(end, True) for end in ends]
    for hypothesis in finished:
        assert hypothesis.log_prob == output_log_prob(log_probs, task, hypothesis.tokens)
    lengths = {len(hypothesis.tokens) for hypothesis in finished}
    assert lengths == set(range(task.min_length, 2 * max_steps(task) - 1))
    assert len(set(finished)) == len(finished)
    finished = sorted(finished, key=lambda h: -h.score(task))
    unfinished = [_hypothesis(pair, False) for pair in prefixes]
    n_best = _n_best(task, finished, unfinished)
    return Answer([n_best], 0, max_steps(task), _close_scores(task, n_best))
