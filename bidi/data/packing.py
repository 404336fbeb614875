"""Examples packed into rows, first fit, chunk by chunk.

Grain's own packing does the same, array by array of one example after another: some 50 microseconds
an example where this takes 8, while Python's lock keeps a GPU from its next update. Here only the
choice of a row is made example by example; rows are put together in a few large copies.

Letters: E examples, N tokens of all of them, B rows, T steps.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

Example = dict[str, np.ndarray]

# The arrays of an example that have the length of its target.
_TARGET = ("inputs", "labels", "weights")


@dataclasses.dataclass(frozen=True)
class Rows:
    """What rows hold.

    Attributes:
      source_length: Steps of a row of the source.
      target_length: Steps of a row of the target.
      bins: Rows that are filled side by side: an example goes into the first with room for it, and
        when there is none, all are given out.
      most: Examples of a row; None: as many as there is room for.
      seed: Of the order in which filled rows are given out; None: as they were begun.
    """

    source_length: int
    target_length: int
    bins: int
    most: int | None
    seed: int | None


class PackedDataset(grain.IterDataset[Example]):
    """Rows, of chunks of examples.

    An example is `source` [s] and `inputs`, `labels`, `weights` [t, ...]; a row is the same as
    [source_length] and [target_length, ...], zero where nothing is, and for `source` and `inputs`
    also NAME_segment_ids, 1, 2, ... by example, and NAME_positions, int32.
    """

    def __init__(self, chunks: grain.IterDataset[Sequence[Example]], rows: Rows):
        """Of chunks of at least one example."""
        super().__init__(chunks)
        self._rows = rows

    def __iter__(self) -> "PackedIterator":
        """From the first chunk on."""
        return PackedIterator(iter(self._parent), self._rows)


class PackedIterator(grain.DatasetIterator[Example]):
    """The rows; its state is where the examples of the rows in hand begin, and how many are out."""

    def __init__(self, parent: grain.DatasetIterator[Sequence[Example]], rows: Rows):
        """At the first row."""
        super().__init__(parent)
        self._config = rows
        self._begin(parent.get_state(), offset=0, next_row=0, counter=0)

    def _begin(self, place: Any, offset: int, next_row: int, counter: int) -> None:
        """At a chunk that is still to be read: `place` is the parent's state before it."""
        self._chunk: Sequence[Example] | None = None
        self._place, self._offset = place, offset
        self._filled: Example | None = None
        self._filled_from = (place, offset)
        self._order: Sequence[int] = ()
        self._next_row, self._counter = next_row, counter

    def get_state(self) -> dict[str, Any]:
        """JSON-ready; `set_state` goes on from there."""
        place, offset = self._filled_from
        return {
            "parent": place,
            "offset": offset,
            "next_row": self._next_row,
            "counter": self._counter,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """To where `get_state` was called."""
        self._parent.set_state(state["parent"])
        self._begin(state["parent"], state["offset"], state["next_row"], state["counter"])

    def __next__(self) -> Example:
        """The next row."""
        filled = self._fill() if self._filled is None else self._filled
        row = self._order[self._next_row]
        found = {key: rows[row] for key, rows in filled.items()}
        self._next_row, self._counter = self._next_row + 1, self._counter + 1
        if self._next_row == len(self._order):
            self._filled, self._next_row = None, 0
            self._filled_from = (self._place, self._offset)
        return found

    def _fill(self) -> Example:
        filling = _Filling(self._config)
        while (example := self._peek(filling)) is not None and filling.add(example):
            self._offset += 1
        self._filled = filling.rows()
        count = len(self._filled["source"])
        self._order = list(range(count))
        if self._config.seed is not None:
            # Of the count of rows before these, so that a restored iterator draws the same.
            drawn = np.random.default_rng(self._config.seed + self._counter - self._next_row)
            self._order = drawn.permuted(self._order).tolist()
        return self._filled

    def _peek(self, filling: "_Filling") -> Example | None:
        """The next example; None at the end, behind which there is nothing to fill."""
        if self._chunk is None:  # the first, or the one that the state points into
            self._chunk = next(self._parent)
        if self._offset == len(self._chunk):
            place = self._parent.get_state()
            try:
                self._chunk = next(self._parent)
            except StopIteration:
                if filling.empty:
                    raise
                return None
            self._place, self._offset = place, 0
        return self._chunk[self._offset]


class _Filling:
    """Rows being filled."""

    def __init__(self, config: Rows):
        self._config = config
        self._examples: list[Example] = []
        self._row_E: list[int] = []
        self._source_room_B = np.full(config.bins, config.source_length)
        self._target_room_B = np.full(config.bins, config.target_length)
        self._left_B = np.full(config.bins, config.most or np.iinfo(np.int64).max)

    @property
    def empty(self) -> bool:
        """Whether nothing was added."""
        return not self._examples

    def add(self, example: Example) -> bool:
        """Adds to the first row with room; False if there is none.

        Raises:
          ValueError: It would not fit into an empty row.
        """
        source, target = len(example["source"]), len(example["inputs"])
        fits_B = (
            (self._source_room_B >= source) & (self._target_room_B >= target) & (self._left_B > 0)
        )
        row = int(fits_B.argmax())
        if not fits_B[row]:
            if self.empty:
                raise ValueError(f"{source} and {target} steps do not fit into {self._config}")
            return False
        self._source_room_B[row] -= source
        self._target_room_B[row] -= target
        self._left_B[row] -= 1
        self._examples.append(example)
        self._row_E.append(row)
        return True

    def rows(self) -> Example:
        """Those that hold something, [B, T, ...]."""
        row_E = np.array(self._row_E)
        # Row by row, in each as they came: then starts and segments are running sums.
        order_E = np.argsort(row_E, kind="stable")
        row_E, examples = row_E[order_E], [self._examples[i] for i in order_E]
        source = _lay(examples, ("source",), row_E, self._config.source_length)
        return source | _lay(examples, _TARGET, row_E, self._config.target_length)


def _lay(examples: list[Example], keys: tuple[str, ...], row_E: np.ndarray, steps: int) -> Example:
    """Arrays `keys`, of one length in each example, laid into rows; `row_E` ascends."""
    count = int(row_E[-1]) + 1  # first fit leaves no row empty before another
    first_E = np.searchsorted(row_E, row_E)  # the first example of the same row
    segment_E = np.arange(len(row_E)) - first_E + 1
    length_E = np.array([len(example[keys[0]]) for example in examples])
    before_E = np.cumsum(length_E) - length_E
    position_N = np.arange(length_E.sum()) - np.repeat(before_E, length_E)
    start_E = row_E * steps + before_E - before_E[first_E]
    place_N = np.repeat(start_E, length_E) + position_N

    def laid(values_N: np.ndarray) -> np.ndarray:
        flat = np.zeros((count * steps, *values_N.shape[1:]), values_N.dtype)
        flat[place_N] = values_N
        return flat.reshape(count, steps, *values_N.shape[1:])

    return {
        **{key: laid(np.concatenate([example[key] for example in examples])) for key in keys},
        f"{keys[0]}_segment_ids": laid(np.repeat(segment_E, length_E).astype(np.int32)),
        f"{keys[0]}_positions": laid(position_N.astype(np.int32)),
    }
