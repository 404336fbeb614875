"""How a directory of prepared data is laid out.

    <directory>/pairs/<split>-00000-of-0000N.array_record   one record per (source, reference)
    <directory>/examples/<split>.array_record               texts with all references; not of train
    <directory>/source.model, target.model                  sentencepiece
    <directory>/manifest.json                               counts, lengths, hashes, versions

A record of pairs/ is msgpack `{"source": bytes, "target": bytes}`, little-endian int32 token ids
without markers; one of examples/ is msgpack `[source, [target, ...]]`.
"""

import json
from typing import Any

from etils import epath

from bidi.errors import DataError
from bidi.files import matching

MANIFEST = "manifest.json"
# Raised when the layout or the meaning of a prepared directory changes.
FORMAT = 1


def read_manifest(directory: epath.Path) -> dict[str, Any]:
    """What the prepared data are.

    Raises:
      DataError: The file is damaged.
    """
    try:
        return json.loads((directory / MANIFEST).read_text())
    except ValueError as error:
        raise DataError(
            f"{directory / MANIFEST} is damaged ({error}): delete the prepared data there, and "
            "run bidi.prepare again"
        ) from error


def pair_shards(directory: epath.Path, split: str) -> list[epath.Path]:
    """The shards of a split's pairs that there are, in order."""
    return matching(directory / "pairs", f"{split}-*.array_record")


def examples_file(directory: epath.Path, split: str) -> epath.Path:
    """The texts of validation or test."""
    return directory / "examples" / f"{split}.array_record"
