"""Parts of the training pairs, so that a model can label what it never saw."""

import hashlib
from collections.abc import Sequence

import numpy as np

from bidi.data.prepared import PairSource, read_range
from bidi.errors import DataError

# Pairs read from disk at once.
_CHUNK = 4096


def fold_of(source: np.ndarray, folds: int) -> int:
    """The fold of a source, int32 token ids: its hash, so that all its pairs share one."""
    digest = hashlib.blake2b(source.astype("<i4").tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % folds


class WithoutFold:
    """The pairs that are not in a fold, in their order.

    Attributes:
        longest: as of all pairs.
    """

    def __init__(self, pairs: PairSource, fold: int, folds: int):
        """Reads all sources once.

        Raises:
            DataError: nothing is left.
        """
        self._pairs, self.longest = pairs, pairs.longest
        kept = [
            index
            for start in range(0, len(pairs), _CHUNK)
            for index, pair in enumerate(read_range(pairs, start, start + _CHUNK), start)
            if fold_of(pair["source"], folds) != fold
        ]
        if not kept:
            raise DataError(f"fold {fold} of {folds} holds all {len(pairs)} pairs: use fewer folds")
        self._indices = np.array(kept)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, np.ndarray]]:
        """See `PairSource`."""
        return self._pairs.__getitems__([int(self._indices[index]) for index in indices])
