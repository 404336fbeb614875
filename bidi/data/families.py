"""Which texts are copies of a template: they must not be on both sides of a split."""

import collections
import re
import zlib
from collections.abc import Sequence

_SHINGLE = 5  # words

_LETTERS = re.compile("[a-z]+")


def families(owners: Sequence[str], texts: Sequence[str]) -> list[str]:
    """Groups texts: those of one owner, and those that resemble, directly or by way of others.

    Two texts resemble if they share half or more of their runs of five words together (Jaccard
    similarity; Broder 1997, "On the resemblance and containment of documents"), letters alone and
    lower case. All such pairs are found, by way of their rarest runs (Chaudhuri, Ganti and Kaushik
    2006, "A primitive operator for similarity joins in data cleaning").

    Args:
      owners: Of each text.
      texts: As many.

    Returns:
      Of each text the name of its family: the least owner in it.
    """
    runs = [_runs(text) for text in texts]
    count = collections.Counter(run for one in runs for run in one)
    parent = {owner: owner for owner in owners}

    def family(owner: str) -> str:
        while parent[owner] != owner:
            parent[owner] = owner = parent[parent[owner]]
        return owner

    having: dict[int, list[int]] = collections.defaultdict(list)
    for index, (owner, mine) in enumerate(zip(owners, runs, strict=True)):
        # Texts that resemble share half of the runs of either, so one at least of these.
        rare = sorted(mine, key=lambda run: (count[run], run))[: len(mine) // 2 + 1]
        for other in {known for run in rare for known in having[run]}:
            one, two = family(owner), family(owners[other])
            if one != two and 2 * len(mine & runs[other]) >= len(mine | runs[other]):
                parent[max(one, two)] = min(one, two)
        for run in rare:
            having[run].append(index)
    return [family(owner) for owner in owners]


def letters(text: str) -> str:
    """A text's letters a to z, lower case; anything else is a single space."""
    return " ".join(_LETTERS.findall(text.lower()))


def _runs(text: str) -> set[int]:
    words = letters(text).split()
    starts = range(max(1, len(words) - _SHINGLE + 1))
    return {zlib.crc32(" ".join(words[i : i + _SHINGLE]).encode()) for i in starts}
