import json
import pathlib

import numpy as np
import pytest

from bidi.data.config import DataConfig
from bidi.data.prepare import prepare
from bidi.data.prepared import Prepared
from bidi.data.sources import ParallelText
from bidi.data.vocabulary import VocabularyConfig
from bidi.errors import DataError


@pytest.fixture
def directory(tmp_path):
    text = tmp_path / "text"
    text.write_text("ab\nc\nabc\n")
    files = {"train": str(text), "validation": str(text)}
    prepare(
        DataConfig(str(tmp_path / "data"), ParallelText(files, files), VocabularyConfig("char"))
    )
    return tmp_path / "data"


def test_pairs_are_random_access(directory):
    pairs = Prepared.open(str(directory)).pairs("train")
    assert len(pairs) == 3
    assert pairs.longest == {"source": 3, "target": 3}
    together, alone = pairs.__getitems__([2, 0]), [pairs.__getitems__([i])[0] for i in (2, 0)]
    for one, other in zip(together, alone, strict=True):
        assert one.keys() == other.keys() == {"source", "target"}
        for side in one:
            assert one[side].dtype == np.int32
            np.testing.assert_array_equal(one[side], other[side])
    assert [len(pair["source"]) for pair in together] == [3, 2]


def test_nothing_prepared_names_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"run python -m bidi\.prepare"):
        Prepared.open(str(tmp_path))


def test_another_format_is_refused(directory):
    path = directory / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 0}))
    with pytest.raises(DataError, match="has format 0, this version reads 1"):
        Prepared.open(str(directory))


def test_unknown_split_names_those_there_are(directory):
    prepared = Prepared.open(str(directory))
    for read in (prepared.pairs, prepared.examples):
        with pytest.raises(DataError, match="no split 'test'; there are: train, validation"):
            read("test")


def test_texts_of_train_are_not_kept(directory):
    with pytest.raises(DataError, match="validation and test only"):
        Prepared.open(str(directory)).examples("train")


def test_a_lost_shard_is_an_error(directory):
    (shard,) = pathlib.Path(directory, "pairs").glob("train-*")
    shard.unlink()
    with pytest.raises(DataError, match="lacks some of the 3 pairs of train"):
        Prepared.open(str(directory)).pairs("train")
