"""Measurements that can be compared: taken in turn, several times, and shown with their spread."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import TypeVar

from bidi.provenance import CompileMeter

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Spread:
    """Several measurements of one thing.

    Attributes:
        median: the middle one.
        least: the smallest.
        most: the greatest.
    """

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Of one measurement or more."""
        listed = [float(value) for value in values]
        return cls(statistics.median(listed), min(listed), max(listed))

    def __format__(self, form: str) -> str:
        form = form or ",.4g"
        return f"{self.median:{form}} ({self.least:{form}} .. {self.most:{form}})"

    def __str__(self) -> str:
        return format(self)


class CompiledMeanwhileError(RuntimeError):
    """Measured times hold times of compilation."""


def interleaved(
    rounds: int, runs: Mapping[K, Callable[[], T]], compiled: CompileMeter
) -> dict[K, list[T]]:
    """What each run gave in each round: A B C A B C, for what slows the machine hits all alike.

    Raises:
        CompiledMeanwhileError: a program was compiled on the way; all runs must have run before.
    """
    results: dict[K, list[T]] = {name: [] for name in runs}
    before = compiled.count
    for _ in range(rounds):
        for name, run in runs.items():
            results[name].append(run())
    if compiled.count > before:
        raise CompiledMeanwhileError(
            f"{compiled.count - before} programs were compiled while times were measured"
        )
    return results


def seconds_of(run: Callable[[], object]) -> float:
    """How long a run takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def ratios(values: Iterable[float], to: Iterable[float]) -> Spread:
    """Round by round, one over the other: of a round both have seen the same machine."""
    return Spread.of(value / base for value, base in zip(values, to, strict=True))
