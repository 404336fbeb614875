"""Reads what `bidi.data.prepare` wrote."""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import msgpack
import numpy as np
from etils import epath

from bidi import distributed
from bidi.data.layout import FORMAT, MANIFEST, examples_file, pair_shards, read_manifest
from bidi.data.records import Records
from bidi.data.sources import Example
from bidi.data.vocabulary import Vocabulary
from bidi.errors import DataError
from bidi.files import absolute, expand

_COMMAND = "python -m bidi.prepare --gin_file=... (the same files as for training)"
_MEND = f"run {_COMMAND}, which mends it"


class PairSource(Protocol):
    """Token ids by random access.

    Attributes:
      longest: Tokens of the longest pair's `source` and `target`, without marker.
    """

    longest: dict[str, int]

    def __len__(self) -> int: ...

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, np.ndarray]]:
        """Several at once; each int32 arrays by name, `source` and `target` among them."""
        ...


def read_range(pairs: PairSource, start: int, stop: int) -> list[dict[str, np.ndarray]]:
    """A range of pairs, as far as there are any."""
    return pairs.__getitems__(range(start, min(stop, len(pairs))))


class Pairs:
    """The token ids of a split, by random access; or of its pseudo outputs.

    Attributes:
      longest: Tokens of the longest pair's `source` and `target`, without marker; empty for pseudo
        outputs, which have neither.
    """

    def __init__(self, paths: Sequence[epath.Path], longest: dict[str, int], remedy: str):
        self._records = Records(paths, remedy)
        self.longest = longest

    def __len__(self) -> int:
        return len(self._records)

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, np.ndarray]]:
        """Several at once, 50 times faster than one by one: int32 [steps] by name, no markers."""
        return [
            {
                side: np.frombuffer(ids, "<i4").astype(np.int32, copy=False)
                for side, ids in msgpack.unpackb(record).items()
            }
            for record in self._records.__getitems__(indices)
        ]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A prepared directory; get one by `Prepared.open`.

    Attributes:
      directory: Where it lies.
      manifest: Counts, lengths, hashes; see `manifest.json` there.
    """

    directory: epath.Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, directory: str) -> "Prepared":
        """Opens a prepared directory.

        Args:
          directory: A path, which may contain `$VAR` and `~`.

        Raises:
          FileNotFoundError: It holds no prepared data.
          DataError: It was prepared by a version with another layout.
        """
        path = expand(directory)
        if not (path / MANIFEST).is_file():
            raise FileNotFoundError(
                f"{absolute(path)} holds no prepared data: run {_COMMAND}, or name another "
                "directory by --gin.Data.directory"
            )
        manifest = read_manifest(path)
        if manifest.get("format") != FORMAT:
            raise DataError(
                f"{path} has format {manifest.get('format')}, this version reads {FORMAT}: "
                f"delete it and run {_COMMAND}"
            )
        return cls(path, manifest)

    @functools.cached_property
    def source_vocabulary(self) -> Vocabulary:
        """The vocabulary of the sources."""
        return self._vocabulary("source")

    @functools.cached_property
    def target_vocabulary(self) -> Vocabulary:
        """The vocabulary of the targets; equal to the sources' when it was trained jointly."""
        return self._vocabulary("target")

    def _vocabulary(self, side: str) -> Vocabulary:
        path = self.directory / f"{side}.model"
        model = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(model).hexdigest() != self.manifest["vocabularies"][side]["sha256"]:
            raise DataError(f"{path} is missing or damaged: {_MEND}")
        return Vocabulary(model)

    def pairs(self, split: str) -> Pairs:
        """The token ids of a split's pairs.

        Raises:
          DataError: There is no such split, or a shard is missing or damaged.
        """
        entry = self._split(split)
        paths = pair_shards(self.directory, split)
        longest = {side: entry[side]["longest"] for side in ("source", "target")}
        if not paths or len(pairs := Pairs(paths, longest, _MEND)) != entry["pairs"]:
            raise DataError(
                f"{self.directory}/pairs lacks some of the {entry['pairs']} pairs of {split}: "
                f"{_MEND}"
            )
        return pairs

    def examples(self, split: str) -> list[Example]:
        """Texts and all references of validation or test, in the source's order, none dropped.

        Raises:
          DataError: There is no such split, or it is train, whose texts are not kept.
        """
        self._split(split)
        path = examples_file(self.directory, split)
        if not path.is_file():
            raise DataError(f"{path} is missing: texts are kept of validation and test only")
        records = Records([path], _MEND)
        texts = map(msgpack.unpackb, records.__getitems__(range(len(records))))
        return [Example(source, tuple(targets)) for source, targets in texts]

    @property
    def identity(self) -> dict[str, Any]:
        """What the data are, wherever they lie."""
        return {key: self.manifest[key] for key in ("fingerprint", "vocabularies")}

    def check_alike(self) -> None:
        """Looks whether all processes have the same data.

        Raises:
          ConfigError: See `distributed.check_alike`.
        """
        distributed.check_alike({"data": distributed.short(self.identity)})

    def digest(self, split: str) -> str:
        """SHA-256 of a split's texts and references, those dropped included.

        Raises:
          DataError: There is no such split.
        """
        return self._split(split)["sha256"]

    def _split(self, split: str) -> dict[str, Any]:
        if split not in self.manifest["splits"]:
            there = ", ".join(self.manifest["splits"])
            raise DataError(f"{self.directory} has no split {split!r}; there are: {there}")
        return self.manifest["splits"][split]
