"""Ragged arrays, against lists of arrays."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bidi.data.ragged import Ragged

SEQUENCES = st.lists(st.lists(st.integers(0, 99), max_size=5), max_size=6)


def ragged(sequences):
    return Ragged.of([np.array(sequence, np.int32) for sequence in sequences])


def listed(made):
    pieces = np.split(made.arrays["ids"], np.cumsum(made.length_E))
    assert not len(pieces[-1])
    return [piece.tolist() for piece in pieces[:-1]]


@given(SEQUENCES)
def test_nothing_is_lost_between_sequences(sequences):
    made = ragged(sequences)
    assert len(made) == len(sequences)
    assert made.arrays["ids"].dtype == np.int32
    assert listed(made) == sequences
    assert listed(made.reversed()) == [sequence[::-1] for sequence in sequences]


@given(SEQUENCES, st.data())
def test_sequences_are_taken_in_any_order(sequences, data):
    index = data.draw(st.lists(st.integers(0, len(sequences) - 1))) if sequences else []
    taken = ragged(sequences).take(np.array(index, np.int64))
    assert listed(taken) == [sequences[place] for place in index]


@given(SEQUENCES, st.data())
def test_what_is_cut_off_and_the_rest(sequences, data):
    most = [data.draw(st.integers(0, 6)) for _ in sequences]
    cut = ragged(sequences).cut(np.array(most, np.int64))
    assert listed(cut) == [one[:steps] for one, steps in zip(sequences, most, strict=True)]
    rest = ragged(sequences).after(np.array(most, np.int64))
    assert listed(rest) == [one[steps:] for one, steps in zip(sequences, most, strict=True)]


@given(st.lists(SEQUENCES, min_size=1, max_size=3))
def test_concatenate(parts):
    made = Ragged.concatenate([ragged(part) for part in parts])
    assert listed(made) == [sequence for part in parts for sequence in part]


def test_places():
    made = ragged([[5, 6], [], [7, 8, 9]])
    assert made.starts.tolist() == [0, 2, 2]
    assert made.positions.tolist() == [0, 1, 0, 1, 2]
    assert made.places(np.array([10, 20, 30])).tolist() == [10, 11, 30, 31, 32]


def test_all_arrays_go_together():
    both = Ragged({"a": np.arange(3), "b": np.arange(6).reshape(3, 2)}, np.array([2, 1]))
    turned = both.take(np.array([1, 0]))
    assert turned.arrays["a"].tolist() == [2, 0, 1]
    assert turned.arrays["b"].tolist() == [[4, 5], [0, 1], [2, 3]]
