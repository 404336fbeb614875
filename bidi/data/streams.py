"""Targets become streams: what each direction reads and what it must predict.

Letters: T target steps (tokens and one marker), W ways (directions).
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import gin
import numpy as np

from bidi.data.vocabulary import BOS, EOS, L2R, PAD, R2L

Direction = Literal["l2r", "r2l"]

# direction -> (start, end)
_MARKERS: dict[str, dict[Direction, tuple[int, int]]] = {
    "swap": {"l2r": (BOS, EOS), "r2l": (EOS, BOS)},
    "tags": {"l2r": (L2R, EOS), "r2l": (R2L, EOS)},
}


@gin.configurable("Streams")
@dataclasses.dataclass(frozen=True)
class Streams:
    """Which directions a model writes, and the markers around them.

    Attributes:
        ways: one direction, or both in lock step.
        markers: `swap`: the right-to-left stream starts where the other ends, and the reverse (Su
            2019); `tags`: a start tag for each direction, one end marker for both (SB-NMT).
        layout: `whole`: each stream is the whole target; `halves`: the left-to-right stream is its
            first ceil(n / 2) tokens, the other one the rest from its end.
    """

    ways: Literal["l2r", "r2l", "both"] = "both"
    markers: Literal["swap", "tags"] = "swap"
    layout: Literal["whole", "halves"] = "whole"

    @property
    def directions(self) -> tuple[Direction, ...]:
        """The direction of each way, in the order of the axis W."""
        return ("l2r", "r2l") if self.ways == "both" else (self.ways,)

    @property
    def writers(self) -> tuple[str, ...]:
        """Who writes outputs: each direction, or `joint`, each the half of it."""
        return ("joint",) if self.layout == "halves" else self.directions

    @property
    def starts(self) -> tuple[int, ...]:
        """The start marker of each way."""
        return tuple(_MARKERS[self.markers][direction][0] for direction in self.directions)

    @property
    def ends(self) -> tuple[int, ...]:
        """The end marker of each way."""
        return tuple(_MARKERS[self.markers][direction][1] for direction in self.directions)

    def length(self, target_length: int) -> int:
        """Steps of the longest stream of a target of so many tokens: its tokens and a marker."""
        return (target_length + 1) // 2 + 1 if self.layout == "halves" else target_length + 1

    def tokens(self, target: np.ndarray) -> dict[str, np.ndarray]:
        """The streams of one target, time first so that rows can be packed along it.

        Args:
            target: int32 [n], token ids without markers, in reading order.

        Returns:
            `inputs` and `labels` int32 [T, W], `weights` float32 [T, W]; T is `length(n)`. Step t
            of one stream is aligned with step t of the other. A stream that ends before the other
            has PAD and weight 0 from there on.
        """
        target = np.asarray(target, np.int32)
        left, right = len(target), 0
        if self.layout == "halves":
            left = right = (len(target) + 1) // 2
        return self.tokens_beside({"l2r": target[:left], "r2l": target[right:]})

    def tokens_beside(self, parts: Mapping[Direction, np.ndarray]) -> dict[str, np.ndarray]:
        """As `tokens`, where it is given what each direction writes.

        Args:
            parts: int32 [n] for each direction, token ids without markers, in reading order.
        """
        shape = (max(len(parts[way]) for way in self.directions) + 1, len(self.directions))
        inputs_TW, labels_TW = np.full(shape, PAD, np.int32), np.full(shape, PAD, np.int32)
        weights_TW = np.zeros(shape, np.float32)
        starts, ends = self.starts, self.ends
        for way, direction in enumerate(self.directions):
            written = parts[direction] if direction == "l2r" else parts[direction][::-1]
            steps = len(written) + 1
            inputs_TW[0, way], inputs_TW[1:steps, way] = starts[way], written
            labels_TW[: steps - 1, way], labels_TW[steps - 1, way] = written, ends[way]
            weights_TW[:steps, way] = 1.0
        return {"inputs": inputs_TW, "labels": labels_TW, "weights": weights_TW}
