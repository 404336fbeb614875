"""Packed rows: the same as Grain's first-fit packing gives, example by example."""

import grain
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bidi.data.packing import Examples, PackedDataset, Rows
from bidi.data.ragged import Ragged

SOURCE, TARGET = 7, 5
KEYS = {"source": SOURCE, "inputs": TARGET, "labels": TARGET, "weights": TARGET}


def example(number, source, target):
    """Of these lengths, with values that occur nowhere else."""
    streams_TW = 100 * number + np.arange(2 * target, dtype=np.int32).reshape(target, 2)
    return {
        "source": 100 * number + np.arange(source, dtype=np.int32),
        "inputs": streams_TW,
        "labels": streams_TW + 50,
        "weights": np.ones((target, 2), np.float32),
    }


def together(examples, names):
    arrays = {name: np.concatenate([one[name] for one in examples]) for name in names}
    return Ragged(arrays, np.array([len(one[names[0]]) for one in examples]))


def packed(examples, chunk, rows):
    parts = [examples[place : place + chunk] for place in range(0, len(examples), chunk)]
    chunks = [
        Examples(together(part, ["source"]), together(part, ["inputs", "labels", "weights"]))
        for part in parts
    ]
    return PackedDataset(grain.MapDataset.source(chunks).to_iter_dataset(), rows)


lengths = st.lists(
    st.tuples(st.integers(1, SOURCE), st.integers(1, TARGET)), min_size=1, max_size=40
)


@given(
    lengths,
    st.integers(1, 50),
    st.integers(1, 6),
    st.sampled_from([None, 1, 2]),
    st.sampled_from([None, 3]),
)
def test_rows_are_those_of_grain(lengths, chunk, bins, most, seed):
    examples = [example(number, *pair) for number, pair in enumerate(lengths)]
    oracle = grain.experimental.FirstFitPackIterDataset(
        grain.MapDataset.source(examples).to_iter_dataset(),
        length_struct=KEYS,
        num_packing_bins=bins,
        shuffle_bins=seed is not None,
        seed=seed or 0,
        max_sequences_per_bin=most,
    )
    found = list(packed(examples, chunk, Rows(SOURCE, TARGET, bins, most, seed)))
    for row, expected in zip(found, oracle, strict=True):
        for key, values in row.items():
            np.testing.assert_array_equal(values, expected[key], strict=True)


@given(lengths, st.integers(1, 50), st.integers(0, 40))
def test_a_restored_iterator_gives_the_rows_that_are_left(lengths, chunk, before):
    examples = [example(number, *pair) for number, pair in enumerate(lengths)]
    dataset = packed(examples, chunk, Rows(SOURCE, TARGET, 3, None, 5))
    whole = list(dataset)
    before = min(before, len(whole))
    iterator = iter(dataset)
    for _ in range(before):
        next(iterator)
    restored = iter(dataset)
    restored.set_state(iterator.get_state())
    for row, expected in zip(restored, whole[before:], strict=True):
        for key, values in row.items():
            np.testing.assert_array_equal(values, expected[key], strict=True)


def test_an_example_longer_than_a_row():
    dataset = packed([example(0, SOURCE + 1, 2)], 1, Rows(SOURCE, TARGET, 3, None, None))
    with pytest.raises(ValueError, match="8 and 2 steps do not fit"):
        next(iter(dataset))
