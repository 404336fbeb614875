"""Where examples come from: parallel text files, or any dataset of TFDS."""

import contextlib
import dataclasses
import difflib
import functools
import gzip
import hashlib
import importlib
import itertools
import os
import string
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import gin
import numpy as np
from etils import epath

from bidi.errors import UserError
from bidi.files import PathError, fetched, in_bucket, path_of

SPLITS = ("train", "validation", "test")

# Modules that register text datasets when they are imported; TFDS finds only newer ones by itself.
_TFDS_MODULES = (
    "bidi.data.cmudict",
    "bidi.data.debian_titles",
    "tensorflow_datasets.translate",
    "tensorflow_datasets.summarization",
)
# One random access of array_record costs 0.2 ms, a thousand at once 4 microseconds each.
_CHUNK = 1000


class DataError(UserError):
    """Data that cannot be used as it is; the message says where and what to do."""


@dataclasses.dataclass(frozen=True)
class Example:
    """A source text and all its references."""

    source: str
    targets: tuple[str, ...]


def expand(path: str) -> epath.Path:
    """A path with `~` and `$VAR` filled in.

    Raises:
      DataError: A variable is not set.
      PathError: It is of a kind that cannot be worked with.
    """
    try:
        filled = string.Template(path).substitute(os.environ)
    except KeyError as error:
        raise DataError(
            f"{path!r}: the environment variable {error.args[0]} is not set: "
            f"export {error.args[0]}=... first"
        ) from error
    except ValueError as error:
        raise DataError(f"{path!r}: write $NAME or ${{NAME}}, and $$ for a dollar") from error
    return path_of(filled)


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
        _check_splits("ParallelText.source", self.source)
        _check_splits("ParallelText.target", self.target)
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


@gin.configurable("Tfds")
@dataclasses.dataclass(frozen=True)
class Tfds:
    """A dataset of TFDS, prepared as array_record, so TensorFlow is not needed.

    Attributes:
      name: As TFDS has it, with the config: `wmt14_translate/de-en`, `cmudict/plain`.
      source_key: The feature to read, `a/b` inside a nested one.
      target_key: The feature to write; a sequence of texts means several references.
      splits: Split of ours (train, validation, test) -> split of TFDS, `train[:90%]` too.
      data_dir: Where TFDS keeps its data; None: `$TFDS_DATA_DIR` or ~/tensorflow_datasets.
    """

    name: str = gin.REQUIRED
    source_key: str = gin.REQUIRED
    target_key: str = gin.REQUIRED
    splits: dict[str, str] = dataclasses.field(
        default_factory=lambda: {split: split for split in SPLITS}
    )
    data_dir: str | None = None

    def examples(self, split: str) -> Iterator[Example]:
        """Reads a split in TFDS's order; downloads and prepares the dataset if it is not there.

        Raises:
          DataError: An unknown dataset, split or feature, a feature that is not text, a split
            without examples, or data prepared in a format that needs TensorFlow.
        """
        builder = self._builder
        try:
            records = builder.as_data_source(self.splits[split])
        except NotImplementedError as error:
            raise DataError(
                f"{builder.data_dir} holds {builder.info.file_format} files, which cannot be read "
                "without TensorFlow: give another Tfds.data_dir, or convert them to array_record"
            ) from error
        for start in range(0, len(records), _CHUNK):
            indices = range(start, min(start + _CHUNK, len(records)))
            for index, record in zip(indices, records.__getitems__(indices), strict=True):
                where = f"{self.name}, split {split}, example {index}"
                source = _texts(record, self.source_key, where)
                if len(source) != 1:
                    raise DataError(f"{where}: {self.source_key!r} must be one text, not several")
                yield Example(source[0], _texts(record, self.target_key, where))

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the data: name, version, features, and the sizes of the splits."""
        info = self._builder.info
        return self.settings() | {
            "name": info.full_name,
            "examples": {s: info.splits[name].num_examples for s, name in self.splits.items()},
            "bytes": {s: info.splits[name].num_bytes for s, name in self.splits.items()},
        }

    def settings(self) -> dict[str, Any]:
        """What of the fingerprint the config says by itself, without TFDS; not the version."""
        said = {key: getattr(self, key) for key in ("source_key", "target_key", "splits")}
        return {"kind": "Tfds", "name": self.name.partition(":")[0], **said}

    def settings_in(self, fingerprint: dict[str, Any]) -> dict[str, Any]:
        """The same of data prepared earlier."""
        if fingerprint["kind"] != "Tfds":
            return {"kind": fingerprint["kind"]}
        # In full it has the config that TFDS chose, too, and the version.
        parts = len(self.name.split("/"))
        name = "/".join(fingerprint["name"].split("/")[:parts])
        return {key: fingerprint[key] for key in self.settings()} | {"name": name}

    @functools.cached_property
    def _builder(self) -> Any:
        """The TFDS builder, its data on disk and this config's names all checked."""
        tfds = _tfds()
        _check_splits("Tfds.splits", self.splits)
        for module in _TFDS_MODULES:
            importlib.import_module(module)
        data_dir = None if self.data_dir is None else expand(self.data_dir)
        if data_dir is not None and in_bucket(data_dir):
            raise PathError(
                f"Tfds.data_dir = {self.data_dir!r} is in a bucket, from which TFDS's array_record "
                "files cannot be read: name a local directory, to which they are copied; "
                "Data.directory may be in a bucket"
            )
        try:
            builder = tfds.builder(self.name, data_dir=data_dir)
        except (ValueError, AssertionError) as error:
            raise DataError(f"Tfds.name: {self._no_builder(error)}") from error
        _check_feature("Tfds.source_key", self.source_key, builder.info.features)
        _check_feature("Tfds.target_key", self.target_key, builder.info.features)
        builder.download_and_prepare(file_format="array_record")
        for name in self.splits.values():
            _check_tfds_split(name, builder)
        return builder

    def _no_builder(self, error: Exception) -> str:
        tfds = _tfds()
        name, _, config = self.name.partition(":")[0].partition("/")
        names = tfds.list_builders(with_community_datasets=False)
        if name not in names:
            return _unknown(name, "dataset of TFDS", names)
        configs = tfds.builder_cls(name).builder_configs
        if configs and config not in configs:
            return _unknown(config, f"config of {name}", configs)
        return str(error)


Source = ParallelText | Tfds


def _tfds() -> Any:
    """TFDS, imported when it is read from: which takes a fifth as long as all other imports."""
    return importlib.import_module("tensorflow_datasets")


def _written(references: tuple[str, ...]) -> tuple[str, ...]:
    """Those that are not blank, or a blank one where all are."""
    return tuple(text for text in references if text.strip()) or references[:1]


def _check_splits(field: str, splits: Mapping[str, object]) -> None:
    for split in splits:
        if split not in SPLITS:
            raise DataError(f"{field}: {_unknown(split, 'split', SPLITS)}")
    if "train" not in splits:
        raise DataError(f"{field}: there is no split 'train'")


def _check_tfds_split(name: str, builder: Any) -> None:
    if name.partition("[")[0] not in builder.info.splits:
        raise DataError(
            f"Tfds.splits: {_unknown(name, f'split of {builder.name}', builder.info.splits)}; "
            "leave out a split that the dataset lacks, or map it to a slice of another"
        )
    try:
        count = builder.info.splits[name].num_examples
    except ValueError as error:
        raise DataError(f"Tfds.splits: {name!r} is no slice that TFDS knows: {error}") from error
    if count == 0:
        raise DataError(f"Tfds.splits: {name!r} of {builder.name} has no example")


def _unknown(name: str, kind: str, names: Sequence[str] | Mapping[str, object]) -> str:
    """`'valid' is no split; nearest: 'validation'; there are: ...`, at most twenty of them."""
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; nearest: {nearest[0]!r}" if nearest else ""
    listed = ", ".join(itertools.islice(names, 20))
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return f"{name!r} is no {kind}{hint}; there are: {listed}{more}"


def _check_feature(field: str, key: str, features: Any) -> None:
    choices = _feature_keys(features)
    if key not in choices:
        raise DataError(f"{field}: {_unknown(key, 'feature of this dataset', choices)}")


def _feature_keys(features: Any, prefix: str = "") -> list[str]:
    """Keys of the features that are no dict themselves: `a`, `b/c`."""
    keys = []
    for name, feature in features.items():
        # A Sequence also has items, those of what it repeats: it is a leaf here.
        nested = isinstance(feature, _tfds().features.FeaturesDict)
        keys += _feature_keys(feature, f"{prefix}{name}/") if nested else [f"{prefix}{name}"]
    return keys


def _texts(record: Any, key: str, where: str) -> tuple[str, ...]:
    for part in key.split("/"):
        record = record[part]
    values = record if isinstance(record, list | np.ndarray) else [record]
    texts = []
    for value in values:
        if isinstance(value, bytes):
            try:
                value = value.decode()
            except UnicodeDecodeError as error:
                raise DataError(f"{where}: {key!r} is not UTF-8: {error}") from error
        if not isinstance(value, str):
            raise DataError(f"{where}: {key!r} is {type(value).__name__} and not text")
        texts.append(value)
    return tuple(texts)


def read_lines(path: epath.Path) -> Iterator[str]:
    """The lines of a file, plain or gzipped (`.gz`), as `decode_lines` gives them.

    Raises:
      DataError: Bytes that are not UTF-8 or gzip.
    """
    done, file = 0, fetched(path)
    try:
        with contextlib.closing(gzip.open(file) if path.suffix == ".gz" else file.open("rb")) as f:
            for line in decode_lines(f, str(path)):
                yield line
                done += 1
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}, after line {done}: not sound gzip: {error}") from error


def decode_lines(lines: Iterable[bytes], name: str) -> Iterator[str]:
    """Lines without their ends: newline and carriage return, not U+2028 and such; nor a first BOM.

    Args:
      lines: As a binary file gives them.
      name: What they are of, for the error.

    Raises:
      DataError: Bytes that are not UTF-8.
    """
    for number, line in enumerate(lines, 1):
        try:
            text = line.removesuffix(b"\n").removesuffix(b"\r").decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{name}, line {number}: not UTF-8: {error}") from error
        yield text.removeprefix("\ufeff") if number == 1 else text


def _sha256(path: epath.Path) -> str:
    with fetched(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
