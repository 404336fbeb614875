"""Pseudo outputs: what models write for the pairs of prepared data, beside their gold targets.

    <directory>/<split>-00000-of-0000N.array_record   one record per pair, in the pairs' order
    <directory>/manifest.json                         of which data, by which models, how good

A record is msgpack `{"l2r": bytes, "r2l": bytes}`, little-endian int32 token ids in reading order,
without markers; either may be empty. Splits are train and validation. The manifest is written
twice: at first it says what the shards will hold, and when all are there, under `splits`, what
they do. `bidi.evaluation.label` writes all this.
"""

import collections
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import msgpack
import numpy as np
from etils import epath

from bidi import distributed
from bidi.data.partner import Partner
from bidi.data.prepared import Pairs, PairSource, Prepared, read_range
from bidi.errors import DataError
from bidi.files import expand, matching

MANIFEST = "manifest.json"
# Raised when the layout or the meaning of a directory changes.
FORMAT = 1
SPLITS = ("train", "validation")
PAIRS_PER_SHARD = 4096
# More pairs a shard rather than more shards: each is a file that stays open.
_MOST_SHARDS = 256

_COMMAND = "python -m bidi.pseudo"
# What a recipe has trained may lie beside the outputs: it is not to be lost with them.
AWAY = f"delete {MANIFEST} and the *.array_record files in it (labellers/ may stay)"


def pairs_per_shard(pairs: int) -> int:
    """Of so many pairs, how many a shard holds, but for the last."""
    return max(PAIRS_PER_SHARD, -(-pairs // _MOST_SHARDS))


def shard_paths(directory: epath.Path, split: str, pairs: int) -> list[epath.Path]:
    """The shards of so many pairs."""
    shards = -(-pairs // pairs_per_shard(pairs))
    return [
        directory / f"{split}-{shard:05d}-of-{shards:05d}.array_record" for shard in range(shards)
    ]


def shards_there(directory: epath.Path, split: str) -> list[epath.Path]:
    """The shards that there are, in order, of however many."""
    number = "[0-9]" * 5
    return matching(directory, f"{split}-{number}-of-{number}.array_record")


@dataclasses.dataclass(frozen=True)
class PseudoOutputs:
    """A complete directory of pseudo outputs; get one by `PseudoOutputs.open`.

    Attributes:
        directory: where it lies.
        manifest: see the module's head.
    """

    directory: epath.Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, directory: str, prepared: Prepared) -> "PseudoOutputs":
        """Opens the outputs for the pairs of `prepared`.

        Args:
            directory: a path, which may contain `$VAR` and `~`.
            prepared: the data that they must have been written for.

        Raises:
            FileNotFoundError: it holds no pseudo outputs.
            DataError: they are unfinished, of another layout, or of other data.
        """
        path = expand(directory)
        named = f"Partner.directory = {directory!r}"
        if not (path / MANIFEST).is_file():
            raise FileNotFoundError(f"{named} holds no pseudo outputs: run {_COMMAND}")
        manifest = json.loads((path / MANIFEST).read_text())
        if manifest.get("format") != FORMAT:
            raise DataError(
                f"{named} has format {manifest.get('format')}, this version reads {FORMAT}: "
                f"{AWAY} and run {_COMMAND}"
            )
        if "splits" not in manifest:
            raise DataError(
                f"{named} is unfinished: run the command again that began it ({_COMMAND})"
            )
        if manifest["fingerprint"] != prepared.manifest["fingerprint"]:
            raise DataError(
                f"{named} holds outputs for other data than those in {prepared.directory}: prepare "
                f"the former data again, or run {_COMMAND} with another directory"
            )
        return cls(path, manifest)

    @property
    def identity(self) -> dict[str, str]:
        """Split -> hash of all its outputs."""
        return {split: entry["sha256"] for split, entry in self.manifest["splits"].items()}

    def check_alike(self) -> None:
        """Looks whether all processes have the same outputs.

        Raises:
            ConfigError: see `distributed.check_alike`.
        """
        distributed.check_alike(
            {f"pseudo outputs for {split}": f"{h[:12]}..." for split, h in self.identity.items()}
        )

    def outputs(self, split: str) -> Pairs:
        """`l2r` and `r2l` of each pair of a split, int32 [t] in reading order.

        Raises:
            DataError: a shard is missing or incomplete.
        """
        return read_outputs(self.directory, split, self.manifest["splits"][split]["pairs"])


def read_outputs(directory: epath.Path, split: str, pairs: int) -> Pairs:
    """See `PseudoOutputs.outputs`; of a directory whose manifest need not be finished."""
    paths = shards_there(directory, split)
    remedy = f"run {_COMMAND} again, which writes it anew"
    if not paths or len(outputs := Pairs(paths, {}, remedy)) != pairs:
        raise DataError(
            f"{directory} lacks some of the outputs for the {pairs} pairs of {split}: {remedy}"
        )
    return outputs


class BesidePseudo:
    """Pairs that have pseudo outputs beside them: `source`, `target`, `l2r` and `r2l`.

    Attributes:
        longest: of the pairs' `source` and `target`.
    """

    def __init__(self, pairs: PairSource, outputs: PairSource):
        """Two of one length, aligned."""
        self._pairs, self._outputs, self.longest = pairs, outputs, pairs.longest

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, np.ndarray]]:
        """See `PairSource`."""
        both = zip(
            self._pairs.__getitems__(indices), self._outputs.__getitems__(indices), strict=True
        )
        return [pair | outputs for pair, outputs in both]


def pairs_beside(partner: Partner, prepared: Prepared, split: str) -> PairSource:
    """A split's pairs, with what this partner needs.

    Raises:
        FileNotFoundError: there are no pseudo outputs.
        DataError: the pairs or the pseudo outputs are not what they should be.
    """
    pairs = prepared.pairs(split)
    if partner.kind != "pseudo":
        return pairs
    return BesidePseudo(pairs, PseudoOutputs.open(partner.directory, prepared).outputs(split))


def summary(directory: epath.Path, prepared: Prepared, split: str) -> dict[str, Any]:
    """What is written for a split: its entry in the manifest.

    Raises:
        DataError: a shard is missing or incomplete.
    """
    pairs = prepared.pairs(split)
    outputs = read_outputs(directory, split, len(pairs))
    digest = hashlib.sha256()
    equal, lengths = collections.Counter[str](), collections.defaultdict[str, list[int]](list)
    for start in range(0, len(pairs), PAIRS_PER_SHARD):
        stop = start + PAIRS_PER_SHARD
        chunk = zip(read_range(pairs, start, stop), read_range(outputs, start, stop), strict=True)
        for pair, written in chunk:
            for direction in ("l2r", "r2l"):
                tokens = written[direction]
                digest.update(msgpack.packb(tokens.astype("<i4").tobytes()))
                equal[direction] += np.array_equal(tokens, pair["target"])
                lengths[direction].append(len(tokens))
    return {
        "pairs": len(pairs),
        "sha256": digest.hexdigest(),
        **{
            direction: {
                "equal_to_gold": round(equal[direction] / len(pairs), 4),
                "empty": listed.count(0),
                "mean": round(sum(listed) / len(pairs), 3),
                "longest": max(listed),
            }
            for direction, listed in lengths.items()
        },
    }
