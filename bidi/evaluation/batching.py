"""Texts of all lengths as batches of few shapes, and programs that run on all devices.

Letters: B batch, P candidates, W ways, S source steps, T target steps, E candidates of all rows, N
target steps of all of them.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from bidi.data.ragged import Ragged
from bidi.data.streams import Streams
from bidi.tokens import PAD

QUEUE = 16  # sources of one search, at most, for each of its rows: a row takes one after another
# With this many sources a row, the time that rows idle at the end of a search is small. With fewer
# they wait for those of the next length: some take more room than they need, but there is one end.
ENOUGH = 3


def usual_tokens(devices: Sequence[jax.Device]) -> int:
    """Source tokens that these devices search at once, where `Evaluation` does not say.

    A CPU is a fifth to a third slower with four times as many: they do not fit its caches.
    """
    each = 1024 if devices[0].platform == "cpu" else 4096
    return each * len(devices)


@dataclasses.dataclass(frozen=True)
class SearchShape:
    """The shape of a search.

    Attributes:
        length: that sources are padded to.
        rows: of all devices.
        sources: that the queue has room for.
    """

    length: int
    rows: int
    sources: int


@dataclasses.dataclass(frozen=True)
class Batching:
    """How many rows a batch has, and which devices they are divided over.

    Attributes:
        batch_tokens: about as many a batch has, padding included.
        devices: all have as many rows.
    """

    batch_tokens: int
    devices: tuple[jax.Device, ...]

    @property
    def device_count(self) -> int:
        """Their number."""
        return len(self.devices)

    def groups(self, lengths: Sequence[int]) -> Iterator[tuple[np.ndarray, int]]:
        """Indices of sources of about one length, and that length; shorter ones come first.

        While there are not `ENOUGH` sources for each row, longer ones join them.
        """
        waiting = np.zeros(0, np.int64)
        buckets = list(_buckets(lengths))
        for members, length in buckets:
            waiting = np.concatenate([waiting, members])
            is_last = length == buckets[-1][1]
            if is_last or len(waiting) >= ENOUGH * self.rows(len(waiting), length):
                yield waiting, length
                waiting = waiting[:0]

    def queues(self, members: np.ndarray, length: int) -> Iterator[tuple[np.ndarray, SearchShape]]:
        """The members of a group, the last ones first, as one search or several.

        Longer ones come first: while the last are searched, rows that find the queue empty idle.
        Queues have about as many, so that none is little more than such an end.
        """
        rows = self.rows(len(members), length)
        sources = rows * min(QUEUE, _power_of_two(len(members) / rows))
        for indices in np.array_split(members[::-1], math.ceil(len(members) / sources)):
            yield indices, SearchShape(length, rows, sources)

    def batches(
        self, lengths: Sequence[int], streams: int
    ) -> Iterator[tuple[np.ndarray, int, int]]:
        """Indices of rows of about one length, that length, and the batch's rows: few shapes.

        Each row has so many streams.
        """
        for members, length in _buckets(lengths):
            rows = self.rows(len(members), length * streams)
            for start in range(0, len(members), rows):
                yield members[start : start + rows], length, rows

    def full(self, tokens: int) -> SearchShape:
        """The shape where many sources have so many tokens."""
        length = _bucket(tokens)
        rows = round_up(self.batch_tokens // length, self.device_count)
        return SearchShape(length, rows, rows * QUEUE)

    def rows(self, members: int, tokens: int) -> int:
        """How many rows of so many tokens a batch has, a multiple of the devices."""
        most = self.batch_tokens // tokens
        # A few sources need no full batch; powers of two keep the shapes few.
        return round_up(min(most, _power_of_two(members)), self.device_count)

    def divided(self, tree: Any) -> Any:
        """[B, ...] -> [devices, B / devices, ...], dealt out in turn.

        In the order of their lengths, and with what fills up the batch at the end, one device would
        else have the long sources and another nothing to do.
        """
        return jax.tree.map(
            lambda x: x.reshape(-1, self.device_count, *x.shape[1:]).swapaxes(0, 1), tree
        )

    def joined(self, tree: Any) -> Any:
        """Undoes `divided`."""
        return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), tree)

    def program(self, function: Callable[..., Any]) -> Any:
        """A function of what all share and of batches, which are `divided`: each device its share.

        Other processes' devices do work of their own.
        """
        return jax.pmap(function, in_axes=(None, 0, 0), devices=self.devices)


def source_batch(encoded: Sequence[np.ndarray], length: int, rows: int) -> dict[str, np.ndarray]:
    """Sources, int32 [s] with end markers, as the model reads them: a row each, int32 [B, S]."""
    source_BS = np.full((rows, length), PAD, np.int32)
    segments_BS = np.zeros((rows, length), np.int32)
    for row, ids in enumerate(encoded):
        source_BS[row, : len(ids)] = ids
        segments_BS[row, : len(ids)] = 1
    positions_BS = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
    return {
        "source": source_BS,
        "source_segments": segments_BS,
        "source_positions": positions_BS,
    }


def candidate_streams(
    streams: Streams,
    candidates: Sequence[Sequence[tuple[int, ...]]],
    most: int,
    length: int,
    rows: int,
) -> dict[str, np.ndarray]:
    """Inputs, labels and weights of outputs, [B, P, W, T]: a row's candidates are at most P."""
    outputs = [np.array(tokens, np.int32) for listed in candidates for tokens in listed]
    made = streams.of_targets(Ragged.of(outputs))
    place_E = [
        row * most + place for row, listed in enumerate(candidates) for place in range(len(listed))
    ]
    step_N = made.places(np.array(place_E, np.int64) * length)

    def laid(values_NW: np.ndarray) -> np.ndarray:
        # PAD and weight 0 are zero.
        flat = np.zeros((rows * most * length, values_NW.shape[1]), values_NW.dtype)
        flat[step_N] = values_NW
        return flat.reshape(rows, most, length, -1).swapaxes(2, 3)

    return {key: laid(values_NW) for key, values_NW in made.arrays.items()}


def round_up(number: int, multiple: int) -> int:
    """The smallest multiple that is no less, at least one of it."""
    return max(multiple, -(-number // multiple) * multiple)


def _buckets(lengths: Sequence[int]) -> Iterator[tuple[np.ndarray, int]]:
    """Indices of sources of about one length, in the order of their lengths."""
    order = np.argsort(lengths, kind="stable")
    buckets = np.array([_bucket(lengths[i]) for i in order])
    for length in np.unique(buckets):
        yield order[buckets == length], int(length)


def _bucket(length: int) -> int:
    """What rows are padded to: multiples of 8, from 64 on of an eighth of the next power of two."""
    step = max(8, 1 << max(int(length - 1).bit_length() - 3, 0))
    return round_up(length, step)


def _power_of_two(number: float) -> int:
    """The smallest one that is no less."""
    return 1 << (math.ceil(number) - 1).bit_length()
