"""Targets become streams: what each direction reads and what it must predict.

Letters: T target steps (tokens and one marker), W ways (directions), E examples, N target steps of
all of them.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import gin
import numpy as np

from bidi.data.ragged import Ragged
from bidi.tokens import BOS, EOS, L2R, PAD, R2L

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
        """The streams of one target.

        Args:
            target: int32 [n], token ids without markers, in reading order.

        Returns:
            `inputs` and `labels` int32 [T, W], `weights` float32 [T, W]; T is `length(n)`. Step t
            of one stream is aligned with step t of the other. A stream that ends before the other
            has PAD and weight 0 from there on.
        """
        return dict(self.of_targets(Ragged.of([target])).arrays)

    def of_targets(self, targets: Ragged) -> Ragged:
        """`tokens` of many targets, given as `ids`: arrays [N, W], time first."""
        if self.layout == "whole":
            return self.beside({"l2r": targets, "r2l": targets})
        half_E = (targets.length_E + 1) // 2
        return self.beside({"l2r": targets.cut(half_E), "r2l": targets.after(half_E)})

    def beside(self, parts: Mapping[Direction, Ragged]) -> Ragged:
        """As `of_targets`, where it is given what each direction writes.

        Args:
            parts: `ids`, int32 [n], for each direction of each example, without markers, in reading
                order.
        """
        written = [
            parts[direction] if direction == "l2r" else parts[direction].reversed()
            for direction in self.directions
        ]
        length_E = np.max([ids.length_E for ids in written], axis=0) + 1
        start_E = np.cumsum(length_E) - length_E
        shape = (length_E.sum(), len(written))
        inputs_NW, labels_NW = np.full(shape, PAD, np.int32), np.full(shape, PAD, np.int32)
        weights_NW = np.zeros(shape, np.float32)
        for way, (ids, start, end) in enumerate(zip(written, self.starts, self.ends, strict=True)):
            token_N, end_E = ids.places(start_E), start_E + ids.length_E
            inputs_NW[start_E, way], inputs_NW[token_N + 1, way] = start, ids.arrays["ids"]
            labels_NW[token_N, way], labels_NW[end_E, way] = ids.arrays["ids"], end
            weights_NW[token_N, way] = weights_NW[end_E, way] = 1.0
        arrays = {"inputs": inputs_NW, "labels": labels_NW, "weights": weights_NW}
        return Ragged(arrays, length_E)
