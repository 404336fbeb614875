"""Targets become streams: what each direction reads and what it must predict.

Letters: T target steps (tokens and one marker), W ways (directions).
"""

import dataclasses
from typing import Literal

import gin
import numpy as np

from bidi.data.vocabulary import BOS, EOS, L2R, R2L

Direction = Literal["l2r", "r2l"]

# direction -> (start, end)
_MARKERS: dict[str, dict[Direction, tuple[int, int]]] = {
    # Su 2019: the right-to-left stream starts where the other ends, and the reverse.
    "swap": {"l2r": (BOS, EOS), "r2l": (EOS, BOS)},
    # Zhou et al. 2019: a start tag for each direction, one end marker for both.
    "tags": {"l2r": (L2R, EOS), "r2l": (R2L, EOS)},
}


@gin.configurable("Streams")
@dataclasses.dataclass(frozen=True)
class Streams:
    """Which directions a model writes, and the markers around them.

    Attributes:
        ways: one direction, or both in lock step.
        markers: `swap` (Su 2019) or `tags` (SB-NMT), see DESIGN.
    """

    ways: Literal["l2r", "r2l", "both"] = "both"
    markers: Literal["swap", "tags"] = "swap"

    @property
    def directions(self) -> tuple[Direction, ...]:
        """The direction of each way, in the order of the axis W."""
        return ("l2r", "r2l") if self.ways == "both" else (self.ways,)

    @property
    def starts(self) -> tuple[int, ...]:
        """The start marker of each way."""
        return tuple(_MARKERS[self.markers][direction][0] for direction in self.directions)

    @property
    def ends(self) -> tuple[int, ...]:
        """The end marker of each way."""
        return tuple(_MARKERS[self.markers][direction][1] for direction in self.directions)

    def tokens(self, target: np.ndarray) -> dict[str, np.ndarray]:
        """The streams of one target, time first so that rows can be packed along it.

        Args:
            target: int32 [n], token ids without markers, in reading order.

        Returns:
            `inputs` and `labels` int32 [n + 1, W], `weights` float32 [n + 1, W]. Step t of one
            stream is aligned with step t of the other.
        """
        target = np.asarray(target, np.int32)
        inputs_WT, labels_WT = [], []
        for direction, start, end in zip(self.directions, self.starts, self.ends, strict=True):
            written = target if direction == "l2r" else target[::-1]
            inputs_WT.append(np.concatenate([[start], written]))
            labels_WT.append(np.concatenate([written, [end]]))
        labels_TW = np.stack(labels_WT, axis=1).astype(np.int32)
        return {
            "inputs": np.stack(inputs_WT, axis=1).astype(np.int32),
            "labels": labels_TW,
            "weights": np.ones(labels_TW.shape, np.float32),
        }
