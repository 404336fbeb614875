"""Turns a source into a directory of prepared data, see `bidi.data.layout`."""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
import logging
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

from etils import epath

import bidi
from bidi.data import vocabulary
from bidi.data.config import DataConfig
from bidi.data.layout import FORMAT, MANIFEST, examples_file, pair_shards, read_manifest
from bidi.data.records import Records
from bidi.data.splits import write_split
from bidi.data.vocabulary import Vocabulary, VocabularyConfig
from bidi.errors import DataError
from bidi.files import (
    absolute,
    expand,
    in_bucket,
    lock,
    matching,
    on_disk,
    path_of,
    remove,
    upload_directory,
    write_whole,
)

log = logging.getLogger(__name__)

_LOCK = "lock"
_UNFINISHED = "unfinished"


def prepare(config: DataConfig) -> dict[str, Any]:
    """Prepares the data, or does nothing if the directory holds exactly these, undamaged.

    Everything is written into a hidden directory beside the target and renamed at the end: a
    directory that exists is complete. What a killed run left behind is removed by the next. In a
    bucket, where nothing keeps others out, one that has a manifest is complete.

    Returns:
      The manifest.

    Raises:
      DataError: The source is bad, the directory holds something else, or another process is
        preparing it.
      FileNotFoundError: A file of the source is missing.
    """
    # What a link leads to: it is that which is replaced.
    directory = absolute(expand(config.directory))
    if not in_bucket(directory) and on_disk(directory).is_mount():
        raise DataError(
            f"Data.directory = {config.directory!r}: a file system is mounted there, which cannot "
            "be renamed: name a directory in it"
        )
    fingerprint = _fingerprint(config)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(directory) as temporary:
        if (manifest := _existing(directory, fingerprint)) is not None:
            log.info("%s is prepared already", directory)
            return manifest
        models = _train_vocabularies(config)
        for side, model in models.items():
            (temporary / f"{side}.model").write_bytes(model)
        vocabularies = {side: Vocabulary(model) for side, model in models.items()}
        manifest = {
            "format": FORMAT,
            "fingerprint": fingerprint,
            "vocabularies": {
                side: {
                    "size": vocabularies[side].size,
                    "sha256": hashlib.sha256(model).hexdigest(),
                }
                for side, model in models.items()
            },
            "splits": {
                split: write_split(config, split, vocabularies, temporary)
                for split in config.source.splits
            },
            "versions": {
                "bidi": bidi.__version__,
                "sentencepiece": importlib.metadata.version("sentencepiece"),
            },
        }
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        if in_bucket(directory):
            _upload(temporary, directory)
            return manifest
        if directory.exists():
            shutil.rmtree(directory)  # empty, or damaged
        temporary.rename(directory)
        (directory / _LOCK).unlink()
    return manifest


def _upload(prepared: epath.Path, directory: epath.Path) -> None:
    """Into a bucket, in place of what is damaged or unfinished there."""
    unfinished = directory / _UNFINISHED
    write_whole(unfinished, "bidi.prepare is at work here, or was stopped: run it again")
    remove(directory / MANIFEST)
    for path in matching(directory, "*"):
        if path != unfinished:
            remove(path)
    upload_directory(prepared, directory, last=MANIFEST)
    remove(unfinished)


def _fingerprint(config: DataConfig) -> dict[str, Any]:
    """Everything that the prepared data depend on, as JSON gives it back."""
    return {**_settings(config), "source": json.loads(json.dumps(config.source.fingerprint()))}


def _settings(config: DataConfig) -> dict[str, Any]:
    """What the config itself says of the data, whatever the source holds."""
    fields = dataclasses.asdict(config)
    del fields["directory"], fields["source"]
    # Not named where it is off: data prepared before it existed are the same.
    if not config.truncate_source:
        del fields["truncate_source"]
    return json.loads(json.dumps(fields))


def check_prepared(config: DataConfig, manifest: dict[str, Any]) -> None:
    """Compares a config with prepared data.

    Of the source, which may be gone by now, nothing is read: its settings are compared.

    Raises:
      DataError: The data were prepared with other settings.
    """
    settings = _settings(config) | {"source": config.source.settings()}
    source = config.source.settings_in(manifest["fingerprint"]["source"])
    prepared = manifest["fingerprint"] | {"source": source}
    if different := list(_differences(prepared, settings)):
        raise DataError(
            f"{config.directory} was prepared with other settings: {'; '.join(different)}. Take "
            "these back, or run bidi.prepare with another Data.directory"
        )


@contextlib.contextmanager
def _temporary(directory: epath.Path) -> Iterator[epath.Path]:
    """A directory beside the target, empty but for the lock; gone afterwards unless renamed.

    Of a bucket, a directory of this machine, and no lock.
    """
    if in_bucket(directory):
        with tempfile.TemporaryDirectory() as place:
            yield path_of(place)
        return
    temporary = directory.parent / f".{directory.name}.preparing"
    temporary.mkdir(exist_ok=True)
    # The lock ends with the process, however that ends, and goes where the directory goes.
    with (temporary / _LOCK).open("w") as held:
        try:
            if not lock(held, wait=False):
                log.warning("%s has no locks: see that no second process prepares it", directory)
        except BlockingIOError as error:
            raise DataError(f"another process is preparing {directory}: wait for it") from error
        for path in temporary.iterdir():
            if path.name != _LOCK:
                log.info("removing %s, left by a run that was stopped", path)
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _existing(directory: epath.Path, fingerprint: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest if these very data are there, None if nothing is or they are damaged."""
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return None
    if in_bucket(directory) and (directory / _UNFINISHED).exists():
        why = "a run was stopped while it copied there"
        _check_foreign(directory, why)
        log.info("preparing %s anew: %s", directory, why)
        return None
    if not (directory / MANIFEST).is_file():
        raise DataError(f"{directory} exists but holds no prepared data: choose another directory")
    manifest = read_manifest(directory)
    old = {"format": manifest.get("format"), **manifest.get("fingerprint", {})}
    different = list(_differences(old, {"format": FORMAT, **fingerprint}))
    if different:
        raise DataError(
            f"{directory} holds other data: {'; '.join(different)}. Choose another Data.directory, "
            "or delete this one to prepare it anew"
        )
    if damage := _damage(directory, manifest):
        _check_foreign(directory, damage)
        log.warning("%s is prepared again: %s", directory, damage)
        return None
    return manifest


def _check_foreign(directory: epath.Path, damage: str) -> None:
    """The whole directory is replaced: what is none of ours must not go with it."""
    ours = {MANIFEST, _LOCK, _UNFINISHED, "pairs", "examples", "source.model", "target.model"}
    if foreign := sorted({path.name for path in matching(directory, "*")} - ours):
        raise DataError(
            f"{directory} must be prepared again ({damage}), but holds more than prepared data: "
            f"{', '.join(foreign)}. Move that elsewhere first"
        )


def _damage(directory: epath.Path, manifest: dict[str, Any]) -> str | None:
    """What cannot be read, or is missing."""
    for split, entry in manifest["splits"].items():
        kinds = [("pairs", pair_shards(directory, split))]
        if split != "train":
            path = examples_file(directory, split)
            kinds.append(("examples", [path] if path.exists() else []))
        for kind, paths in kinds:
            if not paths:
                return f"there are no {kind} of {split}"
            try:
                records = Records(paths, "it is written anew")
                if len(records) != entry[kind]:
                    return f"{len(records)} of {entry[kind]} {kind} of {split} are there"
                records.check()
            except DataError as error:
                return str(error)
    for side, entry in manifest["vocabularies"].items():
        path = directory / f"{side}.model"
        if not path.exists():
            return f"{path.name} is missing"
        if hashlib.sha256(path.read_bytes()).hexdigest() != entry["sha256"]:
            return f"{path.name} is damaged"
    return None


def _differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            inner = f"{name}.{key}" if name else key
            yield from _differences(old.get(key), new.get(key), inner)
    elif old != new:
        yield f"{name} was {old!r} and is now {new!r}"


def _train_vocabularies(config: DataConfig) -> dict[str, bytes]:
    def sources() -> Iterator[str]:
        return (example.source for example in config.source.examples("train"))

    def targets() -> Iterator[str]:
        examples = config.source.examples("train")
        return itertools.chain.from_iterable(example.targets for example in examples)

    def train(side: str, which: VocabularyConfig, sentences: Iterable[str]) -> bytes:
        log.info("training the %s vocabulary: %s", side, which)
        try:
            return vocabulary.train(which, sentences)
        except DataError:  # From reading the sentences: it is not about the vocabulary.
            raise
        except ValueError as error:
            raise DataError(f"the {side} vocabulary: {error}") from error

    if config.target_vocabulary is None:
        both = itertools.chain(sources(), targets())
        joint = train("joint", config.source_vocabulary, both)
        return {"source": joint, "target": joint}
    return {
        "source": train("source", config.source_vocabulary, sources()),
        "target": train("target", config.target_vocabulary, targets()),
    }
