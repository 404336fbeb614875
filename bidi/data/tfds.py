"""Examples of any dataset of TFDS, read without TensorFlow."""

import dataclasses
import functools
import importlib
from collections.abc import Iterator
from typing import Any

import gin
import numpy as np

from bidi.data.sources import SPLITS, Example, check_splits
from bidi.errors import DataError, PathError, suggestion
from bidi.files import expand, in_bucket

# Modules that register text datasets when they are imported; TFDS finds only newer ones by itself.
_TFDS_MODULES = (
    "bidi.data.cmudict",
    "bidi.data.debian_titles",
    "tensorflow_datasets.translate",
    "tensorflow_datasets.summarization",
)
# One random access of array_record costs 0.2 ms, a thousand at once 4 microseconds each.
_CHUNK = 1000


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
        check_splits("Tfds.splits", self.splits)
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
            return f"{name!r} is no dataset of TFDS{suggestion(name, names)}"
        configs = tfds.builder_cls(name).builder_configs
        if configs and config not in configs:
            return f"{config!r} is no config of {name}{suggestion(config, configs)}"
        return str(error)


def _tfds() -> Any:
    """TFDS, imported when it is read from: which takes a fifth as long as all other imports."""
    return importlib.import_module("tensorflow_datasets")


def _check_tfds_split(name: str, builder: Any) -> None:
    if name.partition("[")[0] not in builder.info.splits:
        raise DataError(
            f"Tfds.splits: {name!r} is no split of {builder.name}, which has "
            f"{', '.join(builder.info.splits)}; leave out a split that the dataset lacks, or map "
            "it to a slice of another"
        )
    try:
        count = builder.info.splits[name].num_examples
    except ValueError as error:
        raise DataError(f"Tfds.splits: {name!r} is no slice that TFDS knows: {error}") from error
    if count == 0:
        raise DataError(f"Tfds.splits: {name!r} of {builder.name} has no example")


def _check_feature(field: str, key: str, features: Any) -> None:
    choices = _feature_keys(features)
    if key not in choices:
        raise DataError(f"{field}: {key!r} is no feature of this dataset{suggestion(key, choices)}")


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
