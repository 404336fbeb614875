"""Debian's package descriptions as a TFDS dataset: a long description in, its synopsis out.

Importing this module registers `debian_titles` with TFDS. It is made of the lists that apt keeps in
/var/lib/apt/lists, or in the folder that the environment variable BIDI_APT_LISTS names.

Left out are
- packages librust-*, those of debug symbols, and those that call themselves transitional, dummy,
  virtual, empty or meta-packages: their texts are written by tools;
- descriptions of fewer than 100 or more than 2,000 characters, synopses of fewer than 12 or more
  than 120, and descriptions that begin with their synopsis;
- of a source package all but three packages, those with the shortest names;
- packages whose synopsis, or the beginning of whose description (160 letters), another has: digits,
  punctuation and upper case do not make a difference.

Of Debian 12 (main, with updates) 34,531 packages of 29,653 sources are left.

Packages of one source, and those whose descriptions resemble (`bidi.data.families`: a thousand
Haskell libraries are described in the same words), are one family. A family is wholly for training,
validation or test. Which of them depends on a hash of its name alone, the least of its sources: a
package stays where it is when others come or go.
"""

import collections
import hashlib
import os
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

import tensorflow_datasets as tfds

from bidi.data import apt_lists
from bidi.data.apt_lists import Package
from bidi.data.families import families, letters

_HELD_OUT = 1 / 17  # the share of families that is for test, and that for validation
# Larger families are for training: many texts by one template say little about others.
_LARGEST_HELD_OUT = 50

_OF_A_SOURCE = 3
_BEGINNING = 160
_DESCRIPTION_LENGTHS = range(100, 2001)
_SYNOPSIS_LENGTHS = range(12, 121)
_NAME_OF_TEMPLATE = re.compile("librust-.*|.*-dbg|.*-dbgsym")
_TEXT_OF_TEMPLATE = re.compile(
    "transitional|dummy|meta-?package|meta package|virtual package|empty package", re.IGNORECASE
)


class DebianTitles(tfds.core.GeneratorBasedBuilder):
    """Packages with their descriptions and synopses."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        names = ("package", "description", "synopsis")
        return tfds.core.DatasetInfo(
            builder=self,
            description="Debian's package descriptions and their synopses, split by source.",
            homepage="https://www.debian.org/international/l10n/ddtp",
            features=tfds.features.FeaturesDict({name: tfds.features.Text() for name in names}),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        lists = pathlib.Path(os.environ.get("BIDI_APT_LISTS", "/var/lib/apt/lists"))
        splits = split_packages(clean(apt_lists.read(lists)))
        return {split: self._generate_examples(packages) for split, packages in splits.items()}

    def _generate_examples(self, packages: Iterable[Package]) -> Iterator[tuple[str, dict]]:
        for package in packages:
            yield (
                package.name,
                {
                    "package": package.name,
                    "description": package.description,
                    "synopsis": package.synopsis,
                },
            )


def clean(packages: Iterable[Package]) -> list[Package]:
    """Leaves out what the module's head says; the rest by source, shorter names first."""
    beginnings: set[str] = set()
    synopses: set[str] = set()
    of_source: collections.Counter[str] = collections.Counter()
    kept = []
    for package in sorted(packages, key=lambda p: (p.source, len(p.name), p.name)):
        beginning = letters(package.description)[:_BEGINNING]
        synopsis = letters(package.synopsis)
        if (
            _is_title(package)
            and of_source[package.source] < _OF_A_SOURCE
            and beginning not in beginnings
            and synopsis not in synopses
        ):
            kept.append(package)
            of_source[package.source] += 1
            beginnings.add(beginning)
            synopses.add(synopsis)
    return kept


def split_packages(packages: Iterable[Package]) -> dict[str, list[Package]]:
    """Divides packages into train, validation and test, families undivided, order kept."""
    packages = list(packages)
    names = families([p.source for p in packages], [p.description for p in packages])
    sizes = collections.Counter(names)
    splits: dict[str, list[Package]] = {"train": [], "validation": [], "test": []}
    for package, name in zip(packages, names, strict=True):
        large = sizes[name] > _LARGEST_HELD_OUT
        splits["train" if large else side(name)].append(package)
    return splits


def side(family: str) -> str:
    """The split of a family, by a hash of its name alone."""
    digest = hashlib.sha256(family.encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    if share < _HELD_OUT:
        return "test"
    return "validation" if share < 2 * _HELD_OUT else "train"


def _is_title(package: Package) -> bool:
    """Whether the synopsis is one that somebody has written for the text."""
    return (
        len(package.description) in _DESCRIPTION_LENGTHS
        and len(package.synopsis) in _SYNOPSIS_LENGTHS
        and not package.description.lower().startswith(package.synopsis.lower())
        and not _NAME_OF_TEMPLATE.fullmatch(package.name)
        and not _TEXT_OF_TEMPLATE.search(f"{package.synopsis} {package.description}")
    )
