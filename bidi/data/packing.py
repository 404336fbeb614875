"""Examples packed into rows, first fit, chunk by chunk.

Grain's own packing does the same, array by array of one example after another: some 50 microseconds
an example where this takes a few, while Python's lock keeps a GPU from its next update. Here only
the choice of a row is made example by example; rows are put together in a few large copies.

Letters: E examples, N steps of all of them, B rows, T steps of a row.
"""

import dataclasses
from typing import Any

import grain
import numpy as np

from bidi.data.ragged import Ragged

Row = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Examples:
    """Examples before packing.

    Attributes:
      source: `source` [N].
      target: `inputs`, `labels` and `weights` [N, ...], of as many examples.
    """

    source: Ragged
    target: Ragged

    def __len__(self) -> int:
        return len(self.source)

    def between(self, start: int, stop: int) -> "Examples":
        """Those from `start` to before `stop`."""
        index = np.arange(start, stop)
        return Examples(self.source.take(index), self.target.take(index))


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


class PackedDataset(grain.IterDataset[Row]):
    """Rows, of chunks of examples.

    A row is the arrays of its examples, [source_length] and [target_length, ...], zero where
    nothing is, and for `source` and `inputs` also NAME_segment_ids, 1, 2, ... by example, and
    NAME_positions, int32.
    """

    def __init__(self, chunks: grain.IterDataset[Examples], rows: Rows):
        """Of chunks of at least one example."""
        super().__init__(chunks)
        self._rows = rows

    def __iter__(self) -> "PackedIterator":
        """From the first chunk on."""
        return PackedIterator(iter(self._parent), self._rows)


class PackedIterator(grain.DatasetIterator[Row]):
    """The rows; its state is where the examples of the rows in hand begin, and how many are out."""

    def __init__(self, parent: grain.DatasetIterator[Examples], rows: Rows):
        """At the first row."""
        super().__init__(parent)
        self._config = rows
        self._begin(parent.get_state(), offset=0, next_row=0, counter=0)

    def _begin(self, place: Any, offset: int, next_row: int, counter: int) -> None:
        """At a chunk that is still to be read: `place` is the parent's state before it."""
        self._chunk: Examples | None = None
        self._place, self._offset = place, offset
        self._filled: Row | None = None
        self._filled_from = (place, offset)
        self._order: list[int] = []
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

    def __next__(self) -> Row:
        """The next row."""
        filled = self._fill() if self._filled is None else self._filled
        row = self._order[self._next_row]
        found = {key: rows[row] for key, rows in filled.items()}
        self._next_row, self._counter = self._next_row + 1, self._counter + 1
        if self._next_row == len(self._order):
            self._filled, self._next_row = None, 0
            self._filled_from = (self._place, self._offset)
        return found

    def _fill(self) -> Row:
        filling = _Filling(self._config)
        while (chunk := self._unread(filling)) is not None:
            added = filling.add(chunk, self._offset)
            self._offset += added
            if self._offset < len(chunk):
                break
        self._filled = filling.rows()
        count = len(self._filled["source"])
        self._order = list(range(count))
        if self._config.seed is not None:
            # Of the count of rows before these, so that a restored iterator draws the same.
            drawn = np.random.default_rng(self._config.seed + self._counter - self._next_row)
            self._order = drawn.permuted(self._order).tolist()
        return self._filled

    def _unread(self, filling: "_Filling") -> Examples | None:
        """A chunk of which some is unread; None at the end, behind which there is nothing."""
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
        return self._chunk


class _Filling:
    """Rows being filled."""

    def __init__(self, config: Rows):
        self._config = config
        self._parts: list[Examples] = []
        # Of each example its row and what that held before: steps of source and target, examples.
        self._placed: list[tuple[int, int, int, int]] = []
        # Of each row what it holds.
        self._source_B, self._target_B, self._examples_B = ([0] * config.bins for _ in range(3))

    @property
    def empty(self) -> bool:
        """Whether nothing was added."""
        return not self._placed

    def add(self, chunk: Examples, start: int) -> int:
        """Adds the examples from `start` on, each to the first row with room, as far as they go.

        Returns:
          How many were added.

        Raises:
          ValueError: One would not fit into an empty row.
        """
        before = len(self._placed)
        lengths = (side.length_E[start:].tolist() for side in (chunk.source, chunk.target))
        for source, target in zip(*lengths, strict=True):
            if not self._place(source, target):
                if self.empty:
                    raise ValueError(f"{source} and {target} steps do not fit into {self._config}")
                break
        added = len(self._placed) - before
        self._parts.append(chunk.between(start, start + added))
        return added

    def _place(self, source: int, target: int) -> bool:
        """Whether there was room."""
        # In plain Python: numpy takes longer to be called than this to search.
        source_B, target_B, examples_B = self._source_B, self._target_B, self._examples_B
        most_source = self._config.source_length - source
        most_target = self._config.target_length - target
        most = self._config.most
        for row in range(len(source_B)):
            if (
                source_B[row] <= most_source
                and target_B[row] <= most_target
                and (most is None or examples_B[row] < most)
            ):
                self._placed.append((row, source_B[row], target_B[row], examples_B[row]))
                source_B[row] += source
                target_B[row] += target
                examples_B[row] += 1
                return True
        return False

    def rows(self) -> Row:
        """Those that hold something, [B, T, ...]."""
        row_E, source_E, target_E, before_E = np.array(self._placed).T
        segment_E = (before_E + 1).astype(np.int32)
        source = Ragged.concatenate([part.source for part in self._parts])
        target = Ragged.concatenate([part.target for part in self._parts])
        source_length, target_length = self._config.source_length, self._config.target_length
        return {
            **_lay(source, "source", row_E, source_E, segment_E, source_length),
            **_lay(target, "inputs", row_E, target_E, segment_E, target_length),
        }


def _lay(
    examples: Ragged,
    name: str,
    row_E: np.ndarray,
    start_E: np.ndarray,
    segment_E: np.ndarray,
    steps: int,
) -> Row:
    """Each laid into its row from its start on; `name` of what tells segments and positions."""
    count = int(row_E.max()) + 1  # first fit leaves no row empty before another
    place_N = examples.places(row_E * steps + start_E)

    def laid(values_N: np.ndarray) -> np.ndarray:
        flat = np.zeros((count * steps, *values_N.shape[1:]), values_N.dtype)
        flat[place_N] = values_N
        return flat.reshape(count, steps, *values_N.shape[1:])

    return {
        **{key: laid(values_N) for key, values_N in examples.arrays.items()},
        f"{name}_segment_ids": laid(np.repeat(segment_E, examples.length_E)),
        f"{name}_positions": laid(examples.positions.astype(np.int32)),
    }
