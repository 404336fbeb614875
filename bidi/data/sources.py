"""Where examples come from: here parallel text files, else see `bidi.data.tfds`."""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import gin
from etils import epath

from bidi.data.text import read_lines
from bidi.errors import DataError, suggestion
from bidi.files import expand, fetched

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Example:
    """A source text and all its references."""

    source: str
    targets: tuple[str, ...]


@gin.configurable("ParallelText")
@dataclasses.dataclass(frozen=True)
class ParallelText:
    """Text files aligned line by line, UTF-8, plain or gzipped (`.gz`).

    Attributes:
      source: Split (train, validation, test) -> file.
      target: Split -> file, or the files of several references, where a blank line stands for none.
        Paths may contain `$VAR` and `~`.
    """

    source: dict[str, str] = gin.REQUIRED
    target: dict[str, str | list[str]] = gin.REQUIRED

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits there are, in the order of `SPLITS`."""
        check_splits("ParallelText.source", self.source)
        check_splits("ParallelText.target", self.target)
        if set(self.source) != set(self.target):
            raise DataError(
                f"ParallelText.source has the splits {sorted(self.source)} and ParallelText.target "
                f"{sorted(self.target)}: both sides need the same"
            )
        return tuple(split for split in SPLITS if split in self.source)

    def examples(self, split: str) -> Iterator[Example]:
        """Reads a split in the files' order.

        Raises:
          FileNotFoundError: A file is missing.
          DataError: Bytes that are not UTF-8 or gzip, files of unequal length, an empty file.
        """
        paths = self._files(split)
        counts = [0] * len(paths)
        rows = itertools.zip_longest(*(read_lines(path) for path in paths))
        for row in rows:
            for column, line in enumerate(row):
                counts[column] += line is not None
            # One file is over before the others: only the count is still of interest.
            if None not in row:
                yield Example(row[0], _written(row[1:]))
        if len(set(counts)) > 1:
            table = ", ".join(f"{path}: {n}" for path, n in zip(paths, counts, strict=True))
            raise DataError(
                f"the files of split {split!r} must have equally many lines, but have {table}"
            )
        if counts[0] == 0:
            raise DataError(f"{paths[0]} is empty: split {split!r} has no example")

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the data: SHA-256 of every file's bytes, wherever the file lies."""
        return {
            "kind": "ParallelText",
            "files": {s: [_sha256(path) for path in self._files(s)] for s in self.splits},
        }

    def settings(self) -> dict[str, Any]:
        """What of the fingerprint the config says by itself, whatever the files hold."""
        return {"kind": "ParallelText", "splits": sorted(self.source)}

    def settings_in(self, fingerprint: dict[str, Any]) -> dict[str, Any]:
        """The same of data prepared earlier."""
        if fingerprint["kind"] != "ParallelText":
            return {"kind": fingerprint["kind"]}
        return {"kind": "ParallelText", "splits": sorted(fingerprint["files"])}

    def _files(self, split: str) -> list[epath.Path]:
        targets = self.target[split]
        targets = [targets] if isinstance(targets, str) else targets
        if not targets:
            raise DataError(f"ParallelText.target[{split!r}] names no file")
        paths = [expand(path) for path in (self.source[split], *targets)]
        for path in paths:
            if not path.is_file():
                raise FileNotFoundError(f"{path} (split {split!r} of ParallelText) is not a file")
        return paths


def _written(references: tuple[str, ...]) -> tuple[str, ...]:
    """Those that are not blank, or a blank one where all are."""
    return tuple(text for text in references if text.strip()) or references[:1]


def check_splits(field: str, splits: Mapping[str, object]) -> None:
    """Looks whether a config's splits, under the name of that field, are among ours.

    Raises:
      DataError: One is not, or there is nothing to train on.
    """
    for split in splits:
        if split not in SPLITS:
            raise DataError(f"{field}: {split!r} is no split{suggestion(split, SPLITS)}")
    if "train" not in splits:
        raise DataError(f"{field}: there is no split 'train'")


def _sha256(path: epath.Path) -> str:
    with fetched(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
