"""Writes one split of prepared data; what its files are: `bidi.data.layout`."""

import collections
import contextlib
import hashlib
import logging
import time
from collections.abc import Iterator
from typing import Any

import msgpack
import numpy as np
from etils import epath

from bidi.data.config import DataConfig
from bidi.data.layout import examples_file
from bidi.data.records import record_writer
from bidi.data.sources import Example
from bidi.data.vocabulary import Vocabulary
from bidi.errors import DataError
from bidi.tokens import UNK

log = logging.getLogger(__name__)

_PAIRS_PER_SHARD = 1_000_000
_LOG_EVERY_SECONDS = 10.0


class _Side:
    """Length and unknown-token counts of one side of a split's pairs."""

    def __init__(self) -> None:
        self.lengths: collections.Counter[int] = collections.Counter()
        self.unknown = 0

    def add(self, ids: np.ndarray) -> None:
        self.lengths[len(ids)] += 1
        self.unknown += int(np.count_nonzero(ids == UNK))

    def summary(self) -> dict[str, int | float]:
        values = np.array(sorted(self.lengths))
        counts = np.array([self.lengths[value] for value in values])
        # inverted_cdf: a length that occurs, not a point between two.
        median, p95, p99 = np.quantile(
            values, [0.5, 0.95, 0.99], weights=counts, method="inverted_cdf"
        )
        return {
            "tokens": int(values @ counts),
            "unknown": self.unknown,
            "mean": round(float(values @ counts / counts.sum()), 3),
            "median": int(median),
            "p95": int(p95),
            "p99": int(p99),
            "longest": int(values[-1]),
        }


class _OutOfReach:
    """References that no output equals: of unknown tokens, or changed by the normalisation."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._seen = self._counted = 0
        self._first = ""

    def add(self, reference: str) -> None:
        self._seen += 1
        written = self._vocabulary.decode(self._vocabulary.encode(reference))
        if written.split() != reference.split():
            self._counted += 1
            self._first = self._first or f"{reference[:80]!r} would be {written[:80]!r}"

    def log(self, split: str) -> None:
        if self._counted:
            log.warning(
                "%s: %d of %d references can never be written (Vocabulary.normalization, "
                ".character_coverage): %s",
                split,
                self._counted,
                self._seen,
                self._first,
            )


def write_split(
    config: DataConfig, split: str, vocabularies: dict[str, Vocabulary], directory: epath.Path
) -> dict[str, Any]:
    """Writes the pairs (and but for train the examples) of a split; returns its manifest entry."""
    sides = {"source": _Side(), "target": _Side()}
    dropped = {"empty": 0, "source_too_long": 0, "target_too_long": 0}
    digest = hashlib.sha256()
    out_of_reach = _OutOfReach(vocabularies["target"])
    examples = pairs = truncated = 0
    last_log = time.monotonic()
    with contextlib.ExitStack() as stack:
        shards = stack.enter_context(contextlib.closing(_Shards(directory / "pairs", split)))
        texts = None
        if split != "train":
            path = examples_file(directory, split)
            texts = stack.enter_context(contextlib.closing(record_writer(path)))
        for example in config.source.examples(split):
            examples += 1
            record = msgpack.packb([example.source, example.targets])
            digest.update(record)
            if texts is not None:
                if not example.targets:
                    raise DataError(
                        f"split {split!r}, example {examples}: it has no reference to be scored "
                        f"by; its source is {example.source[:80]!r}"
                    )
                texts.write(record)
                for target in example.targets:
                    out_of_reach.add(target)
            for ids in _encode(example, vocabularies):
                if reason := _reason_to_drop(ids, config):
                    dropped[reason] += 1
                    continue
                pairs += 1
                if len(ids["source"]) > config.max_source_length:
                    truncated += 1
                    ids["source"] = ids["source"][: config.max_source_length]
                for side, counts in sides.items():
                    counts.add(ids[side])
                shards.write(msgpack.packb({s: i.astype("<i4").tobytes() for s, i in ids.items()}))
            if time.monotonic() - last_log > _LOG_EVERY_SECONDS:
                log.info("%s: %d examples, %d pairs so far", split, examples, pairs)
                last_log = time.monotonic()
    if pairs == 0:
        raise DataError(
            f"split {split!r}: none of {examples} examples is usable; dropped {dropped}"
        )
    log.info("%s: %d examples, %d pairs, dropped %s", split, examples, pairs, dropped)
    out_of_reach.log(split)
    return {
        "examples": examples,
        "pairs": pairs,
        "dropped": dropped,
        "truncated": truncated,
        "sha256": digest.hexdigest(),
        **{side: counts.summary() for side, counts in sides.items()},
    }


def _encode(
    example: Example, vocabularies: dict[str, Vocabulary]
) -> Iterator[dict[str, np.ndarray]]:
    source = vocabularies["source"].encode(example.source)
    # A training example without any reference is a pair with an empty target: it is counted.
    for target in example.targets or ("",):
        yield {"source": source, "target": vocabularies["target"].encode(target)}


def _reason_to_drop(ids: dict[str, np.ndarray], config: DataConfig) -> str | None:
    if not len(ids["source"]) or not len(ids["target"]):
        return "empty"
    if len(ids["source"]) > config.max_source_length and not config.truncate_source:
        return "source_too_long"
    if len(ids["target"]) > config.max_target_length:
        return "target_too_long"
    return None


class _Shards:
    """Writes records into `<split>-00000-of-0000N.array_record`; N is known at the end."""

    def __init__(self, directory: epath.Path, split: str):
        self._directory = directory
        self._split = split
        self._written = 0
        self._paths: list[epath.Path] = []
        self._writer: Any = None

    def write(self, record: bytes) -> None:
        if self._written % _PAIRS_PER_SHARD == 0:
            if self._writer is not None:
                self._writer.close()
            self._paths.append(self._directory / f"{self._split}-{len(self._paths):05d}")
            self._writer = record_writer(self._paths[-1])
        self._writer.write(record)
        self._written += 1

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        for path in self._paths:
            path.rename(f"{path}-of-{len(self._paths):05d}.array_record")
