import pytest

from bidi.benchmarking.rounds import CompiledMeanwhileError, Spread, interleaved, ratios


class Compiled:
    """A count of compilations that the tests set."""

    def __init__(self):
        self.count = 7


def test_rounds_are_taken_in_turn():
    order = []
    runs = {name: lambda name=name: order.append(name) or len(order) for name in "abc"}
    assert interleaved(2, runs, Compiled()) == {"a": [1, 4], "b": [2, 5], "c": [3, 6]}
    assert order == list("abcabc")


def test_compilation_is_not_measured_by_mistake():
    compiled = Compiled()

    def run():
        compiled.count += 1

    with pytest.raises(CompiledMeanwhileError, match="2 programs were compiled while"):
        interleaved(2, {"a": run}, compiled)


def test_spread():
    spread = Spread.of([3.0, 1.0, 2.0, 10.0])
    assert spread == Spread(2.5, 1.0, 10.0)
    assert str(spread) == "2.5 (1 .. 10)"
    assert f"{spread:.1f}" == "2.5 (1.0 .. 10.0)"


def test_ratios_are_of_the_same_round():
    """The machine at half its speed in the second round changes no ratio."""
    assert ratios([2.0, 4.0, 2.2], to=[1.0, 2.0, 1.0]) == Spread(2.0, 2.0, 2.2)
    with pytest.raises(ValueError, match="zip"):
        ratios([1.0], to=[1.0, 2.0])
