import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bidi.data import folds
from bidi.data.folds import WithoutFold, fold_of
from bidi.errors import DataError

# Sources of so few letters that many are there several times, as words with two pronunciations.
SOURCES = st.lists(
    st.lists(st.integers(6, 8), min_size=1, max_size=2).map(tuple), min_size=1, max_size=30
)


class FakePairs:
    """Pair i: a source, and its number as target."""

    def __init__(self, sources):
        self.sources, self.longest = sources, {"source": 2, "target": 1}

    def __len__(self):
        return len(self.sources)

    def __getitems__(self, indices):
        return [
            {"source": np.array(self.sources[i], np.int32), "target": np.array([i], np.int32)}
            for i in indices
        ]


def targets(pairs):
    return [int(pair["target"][0]) for pair in pairs.__getitems__(range(len(pairs)))]


@given(SOURCES, st.integers(2, 5))
def test_folds_are_disjoint_and_complete_and_divide_no_source(sources, count):
    pairs, held_out = FakePairs(sources), []
    for fold in range(count):
        if all(fold_of(np.array(source, np.int32), count) == fold for source in sources):
            with pytest.raises(DataError, match=f"fold {fold} of {count} holds all"):
                WithoutFold(pairs, fold, count)
            kept = []
        else:
            kept = targets(WithoutFold(pairs, fold, count))
        assert kept == sorted(kept)
        held_out.append(set(range(len(sources))) - set(kept))
        assert not {sources[i] for i in held_out[-1]} & {sources[i] for i in kept}
    assert sorted(i for fold in held_out for i in fold) == list(range(len(sources)))


def test_pairs_are_read_in_chunks_and_found_by_their_new_places(monkeypatch):
    sources = [(6 + i % 50, 6 + i // 50) for i in range(100)]
    whole = WithoutFold(FakePairs(sources), 1, 3)
    monkeypatch.setattr(folds, "_CHUNK", 7)
    chunked = WithoutFold(FakePairs(sources), 1, 3)
    assert targets(whole) == targets(chunked)
    assert len(chunked) == len(targets(chunked)) < 100
    (last, first) = chunked.__getitems__([len(chunked) - 1, 0])
    assert [int(pair["target"][0]) for pair in (first, last)] == targets(chunked)[
        :: len(chunked) - 1
    ]
    assert chunked.longest == {"source": 2, "target": 1}


@pytest.mark.parametrize("count", [2, 3, 5])
def test_folds_are_about_equal(count):
    sizes = np.bincount([fold_of(np.array([i, i + 1]), count) for i in range(3000)])
    np.testing.assert_allclose(sizes, 3000 / count, rtol=0.1)


def test_folds_stay_what_they_were():
    """Labels that are there were made with them."""
    sources = [np.array([6, 7, 8 + i], np.int32) for i in range(10)]
    assert [fold_of(source, 3) for source in sources] == [1, 1, 1, 2, 0, 1, 0, 2, 2, 0]
