"""Many sequences end to end, so that numpy works on all of them at once.

Letters: E sequences, N steps of all of them.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Ragged:
    """Arrays of sequences.

    Attributes:
        arrays: name -> [N, ...]; in each of them the sequences have the same lengths.
        length_E: int64, steps of each sequence; 0 is allowed.
    """

    arrays: Mapping[str, np.ndarray]
    length_E: np.ndarray

    @classmethod
    def of(cls, sequences: Sequence[np.ndarray]) -> "Ragged":
        """One array, `ids`, of int32 token ids [steps]."""
        length_E = np.array([len(sequence) for sequence in sequences], np.int64)
        ids_N = np.concatenate(sequences, dtype=np.int32) if sequences else np.zeros(0, np.int32)
        return cls({"ids": ids_N}, length_E)

    @classmethod
    def concatenate(cls, parts: "Sequence[Ragged]") -> "Ragged":
        """The sequences of all parts, at least one, that have the same arrays."""
        return cls(
            {
                name: np.concatenate([part.arrays[name] for part in parts])
                for name in parts[0].arrays
            },
            np.concatenate([part.length_E for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.length_E)

    @property
    def starts(self) -> np.ndarray:
        """Where each sequence begins in the arrays, int64."""
        return np.cumsum(self.length_E) - self.length_E

    @property
    def positions(self) -> np.ndarray:
        """The place of each step in its sequence, int64."""
        return self.places(np.zeros(len(self), np.int64))

    def places(self, start_E: np.ndarray) -> np.ndarray:
        """Where each step stands if its sequence begins at `start_E` of something, int64 [N]."""
        return np.arange(self.length_E.sum()) + np.repeat(start_E - self.starts, self.length_E)

    def take(self, index: np.ndarray) -> "Ragged":
        """The sequences `index`, int [E'] of places in E."""
        return self._pieces(self.starts[index], self.length_E[index])

    def cut(self, most_E: np.ndarray) -> "Ragged":
        """Of each sequence its first steps, at most so many."""
        return self._pieces(self.starts, np.minimum(self.length_E, most_E))

    def after(self, most_E: np.ndarray) -> "Ragged":
        """Of each sequence what `cut` leaves out."""
        start_E = np.minimum(self.length_E, most_E)
        return self._pieces(self.starts + start_E, self.length_E - start_E)

    def reversed(self) -> "Ragged":
        """Each sequence from its end."""
        last_E = self.starts + self.length_E - 1
        backwards_N = np.repeat(last_E, self.length_E) - self.positions
        return Ragged(
            {name: array[backwards_N] for name, array in self.arrays.items()}, self.length_E
        )

    def _pieces(self, start_E: np.ndarray, length_E: np.ndarray) -> "Ragged":
        place_N = Ragged({}, length_E).places(start_E)
        return Ragged({name: array[place_N] for name, array in self.arrays.items()}, length_E)
