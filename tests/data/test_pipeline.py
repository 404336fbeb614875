import collections
import contextlib
import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bidi.data import pipeline
from bidi.data.partner import Partner
from bidi.data.pipeline import BatchConfig, training_batches, validation_batches
from bidi.data.pseudo import BesidePseudo
from bidi.data.streams import Streams
from bidi.errors import DataError
from bidi.tokens import EOS, PAD

FIRST = 6
CONFIG = BatchConfig(rows=4, source_length=16, target_length=12, packing_bins=4)
BOTH = Streams("both", "swap")


class FakePairs:
    """Pair i: its number as token on both sides, as often as the lengths say."""

    def __init__(self, lengths):
        self._pairs = [
            {"source": np.full(s, FIRST + i, np.int32), "target": np.full(t, FIRST + i, np.int32)}
            for i, (s, t) in enumerate(lengths)
        ]
        self.longest = {
            side: max(len(pair[side]) for pair in self._pairs) for side in ("source", "target")
        }

    def __len__(self):
        return len(self._pairs)

    def __getitems__(self, indices):
        return [self._pairs[i] for i in indices]


def unpack(batch):
    """Every example of a batch: (source tokens, inputs, labels, weights), each [length(, W)]."""
    examples = []
    for row in range(len(batch["source"])):
        numbers = batch["source_segments"][row]
        for segment in range(1, numbers.max() + 1):
            here = numbers == segment
            there = batch["segments"][row, 0] == segment
            for mask, positions in (
                (here, batch["source_positions"][row]),
                (there, batch["positions"][row, 0]),
            ):
                places = np.flatnonzero(mask)
                np.testing.assert_array_equal(np.diff(places), 1)
                np.testing.assert_array_equal(positions[mask], np.arange(len(places)))
            examples.append(
                (
                    batch["source"][row, here],
                    *(batch[key][row, :, there] for key in ("inputs", "labels", "weights")),
                )
            )
    return examples


def number(example):
    """Which pair an example is; checks that it is exactly that pair."""
    source, inputs, labels, weights = example
    name = int(source[0]) - FIRST
    assert source[-1] == EOS
    assert set(source[:-1]) == {name + FIRST}
    expected = BOTH.tokens(np.full(len(labels) - 1, name + FIRST, np.int32))
    np.testing.assert_array_equal(inputs, expected["inputs"])
    np.testing.assert_array_equal(labels, expected["labels"])
    np.testing.assert_array_equal(weights, expected["weights"])
    return name, len(source) - 1, len(labels) - 1


def numbers(batches):
    return [number(example)[0] for batch in batches for example in unpack(batch)]


def check_shapes(batch, rows, config, ways):
    shape = {"source": (rows, config.source_length), "target": (rows, ways, config.target_length)}
    assert {key: (value.shape, value.dtype) for key, value in batch.items()} == {
        "source": (shape["source"], np.int32),
        "source_segments": (shape["source"], np.int32),
        "source_positions": (shape["source"], np.int32),
        "inputs": (shape["target"], np.int32),
        "labels": (shape["target"], np.int32),
        "segments": (shape["target"], np.int32),
        "positions": (shape["target"], np.int32),
        "weights": (shape["target"], np.float32),
    }
    assert all(value.flags.c_contiguous for value in batch.values())


def training(pairs, config=CONFIG, streams=BOTH, seed=7, **processes):
    """A training iterator whose threads end with the `with` block."""
    return contextlib.closing(training_batches(pairs, streams, config, seed=seed, **processes))


LENGTHS = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=30)


@pytest.fixture(scope="module", autouse=True)
def short_chunks():
    """Less is read at once than there is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "_CHUNK", 7)
        yield


@given(LENGTHS, st.integers(1, 5), st.integers(1, 5), st.booleans())
def test_validation_has_every_pair_once_packed_or_not(lengths, rows, bins, pack):
    config = BatchConfig(rows, source_length=8, target_length=9, packing_bins=bins, pack=pack)
    batches = list(validation_batches(FakePairs(lengths), BOTH, config))
    for batch in batches:
        check_shapes(batch, rows, config, ways=2)
    examples = [number(example) for batch in batches for example in unpack(batch)]
    assert sorted(examples) == [(i, s, t) for i, (s, t) in enumerate(lengths)]
    if not pack:
        assert len(batches) == -(-len(lengths) // rows)
        assert [name for name, _, _ in examples] == list(range(len(lengths)))


def test_processes_share_each_validation_batch():
    config = BatchConfig(4, source_length=16, target_length=12, packing_bins=3)
    shares = [
        list(validation_batches(some_pairs(), BOTH, config, process_index=i, process_count=2))
        for i in range(2)
    ]
    whole = list(validation_batches(some_pairs(), BOTH, config))
    for batch, *halves in zip(whole, *shares, strict=True):
        for key, value in batch.items():
            np.testing.assert_array_equal(np.concatenate([half[key] for half in halves]), value)


@given(LENGTHS, st.booleans())
def test_where_nothing_is_there_everything_is_zero(lengths, pack):
    config = BatchConfig(4, source_length=12, target_length=10, packing_bins=3, pack=pack)
    for batch in validation_batches(FakePairs(lengths), BOTH, config):
        empty = batch["source_segments"] == 0
        assert not batch["source"][empty].any()
        empty = batch["segments"] == 0
        for key in ("inputs", "labels", "weights", "positions"):
            assert not batch[key][empty].any()


def test_a_stream_that_is_over_has_no_segment():
    config = BatchConfig(1, source_length=16, target_length=12)
    halves = Streams("both", "tags", "halves")
    (batch,) = validation_batches(FakePairs([(2, 5), (2, 3)]), halves, config)
    np.testing.assert_array_equal(batch["segments"][0, 0], [1] * 4 + [2] * 3 + [0] * 5)
    np.testing.assert_array_equal(batch["segments"][0, 1], [1] * 3 + [0] + [2] * 2 + [0] + [0] * 5)
    assert not batch["weights"][batch["segments"] == 0].any()


def test_one_way():
    streams = Streams("r2l", "tags")
    with training(FakePairs([(1, 2)] * 9), streams=streams) as batches:
        check_shapes(next(batches), 4, CONFIG, ways=1)


def some_pairs(count=45):
    draw = np.random.default_rng(0)
    return FakePairs([tuple(map(int, draw.integers(1, 8, 2))) for _ in range(count)])


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("before", [0, 1, 5, 17])
def test_a_restored_iterator_goes_on_identically(pack, before):
    config = BatchConfig(4, 16, 12, packing_bins=3, pack=pack)
    with training(some_pairs(), config) as batches:
        for _ in range(before):
            next(batches)
        state = json.loads(json.dumps(batches.get_state()))
        expected = list(itertools.islice(batches, 12))
    # 4 rows a batch without packing: an epoch is 11.25 batches, so that 12 go into the next.
    with training(some_pairs(), config) as restored:
        restored.set_state(state)
        for batch, other in zip(itertools.islice(restored, 12), expected, strict=True):
            for key in batch:
                np.testing.assert_array_equal(batch[key], other[key])


def test_an_iterator_in_use_can_be_set_back():
    with training(some_pairs()) as batches:
        state = batches.get_state()
        first = numbers(itertools.islice(batches, 5))
        batches.set_state(state)
        assert numbers(itertools.islice(batches, 5)) == first


def test_order_depends_on_the_seed_alone():
    def order(seed):
        with training(some_pairs(), seed=seed) as batches:
            return numbers(itertools.islice(batches, 10))

    assert order(1) == order(1) != order(2)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_share_each_epoch_without_overlap(processes):
    pairs, config = some_pairs(48), BatchConfig(4, 16, 12, pack=False)
    shares = []
    for index in range(processes):
        with training(pairs, config, process_index=index, process_count=processes) as batches:
            shares.append(list(itertools.islice(batches, 2 * 48 // config.rows)))
            check_shapes(shares[-1][0], config.rows // processes, config, ways=2)
    epochs = [
        [name for share in shares for name in numbers(share[first : first + 12])]
        for first in (0, 12)
    ]
    for epoch in epochs:
        assert sorted(epoch) == list(range(48))
    assert epochs[0] != epochs[1]


def test_packed_and_unpacked_training_show_the_same_examples():
    # As many rows as packing bins: a batch is one filling of the bins, so nothing is left between.
    packed = BatchConfig(4, 16, 12, packing_bins=4)
    with training(some_pairs(), packed) as batches:
        seen = numbers(itertools.islice(batches, 20))
    with training(some_pairs(), BatchConfig(1, 16, 12, pack=False)) as batches:
        expected = numbers(itertools.islice(batches, len(seen)))
    assert len(seen) > 20 * 4
    assert collections.Counter(seen) == collections.Counter(expected)


@pytest.mark.parametrize(
    ("side", "lengths"), [("source", (8, 2)), ("target", (2, 8))], ids=["source", "target"]
)
def test_rows_too_short_for_the_longest_pair(side, lengths):
    config = BatchConfig(2, source_length=8, target_length=8)
    message = rf"Batches\.{side}_length = 8, .* needs 9.* smaller Data\.max_{side}_length"
    with pytest.raises(DataError, match=message):
        training_batches(FakePairs([lengths]), BOTH, config, seed=0)
    with pytest.raises(DataError, match=message):
        next(validation_batches(FakePairs([lengths]), BOTH, config))


def test_rows_must_divide_among_processes():
    with pytest.raises(DataError, match=r"Batches\.rows = 4 is not divisible by the 3 processes"):
        training_batches(some_pairs(), BOTH, CONFIG, seed=0, process_count=3)


PSEUDO, BOTH_LEARNT = (
    Partner("pseudo", "somewhere", loss_on_pseudo=loss) for loss in (False, True)
)
PSEUDO_LENGTHS = st.lists(
    st.tuples(*[st.integers(1, 7)] * 2, *[st.integers(0, 14)] * 2), min_size=1, max_size=20
)


class FakeOutputs:
    """Outputs i: tokens that tell them from the target and from each other."""

    def __init__(self, lengths):
        self._outputs = [
            {"l2r": 1000 + 20 * i + np.arange(left), "r2l": 2000 + 20 * i + np.arange(right)}
            for i, (left, right) in enumerate(lengths)
        ]

    def __len__(self):
        return len(self._outputs)

    def __getitems__(self, indices):
        return [self._outputs[i] for i in indices]

    def __getitem__(self, index):
        return self._outputs[index]


def beside_pseudo(lengths):
    outputs = FakeOutputs([lengths[2:] for lengths in lengths])
    return BesidePseudo(FakePairs([lengths[:2] for lengths in lengths]), outputs), outputs


def written(direction, inputs, labels, weights):
    """A stream's tokens in reading order, without markers, and its weights; checks the rest."""
    markers = Streams(direction, "swap")
    here = inputs != PAD
    count = here.sum()
    assert here[:count].all()
    assert not labels[count:].any()
    assert not weights[count:].any()
    assert inputs[0] == markers.starts[0]
    np.testing.assert_array_equal(inputs[1:count], labels[: count - 1])
    ended = labels[count - 1] == markers.ends[0]
    tokens = labels[: count - 1] if ended else labels[:count]
    return tokens if direction == "l2r" else tokens[::-1], weights[:count], ended


@given(PSEUDO_LENGTHS, st.sampled_from([PSEUDO, BOTH_LEARNT]), st.booleans())
def test_a_pair_becomes_two_examples_each_with_one_gold_stream(lengths, partner, pack):
    config = BatchConfig(3, source_length=12, target_length=9, packing_bins=3, pack=pack)
    pairs, outputs = beside_pseudo(lengths)
    golds = []
    for batch in validation_batches(pairs, BOTH, config, partner):
        check_shapes(batch, 3, config, ways=2)
        np.testing.assert_array_equal(batch["segments"] == 0, batch["inputs"] == PAD)
        for row in range(3):
            for segment in range(1, batch["source_segments"][row].max() + 1):
                source = batch["source"][row, batch["source_segments"][row] == segment]
                i = source[0] - FIRST
                there_T = (batch["segments"][row] == segment).any(axis=0)
                streams = {
                    direction: written(
                        direction, *(batch[key][row, way, there_T] for key in
                                     ("inputs", "labels", "weights"))
                    )
                    for way, direction in enumerate(("l2r", "r2l"))
                }  # fmt: skip
                (gold,) = (
                    way for way, (tokens, _, _) in streams.items() if FIRST + i in tokens[:1]
                )
                pseudo = {"l2r": "r2l", "r2l": "l2r"}[gold]
                golds.append((i, gold))

                tokens, weights, ended = streams[gold]
                assert tokens.tolist() == [FIRST + i] * lengths[i][1]
                assert ended
                assert (weights == 1).all()

                tokens, weights, ended = streams[pseudo]
                expected = outputs[i][pseudo]
                steps = 9 if partner.loss_on_pseudo else lengths[i][1] + 1
                assert ended == (len(expected) < steps)
                # A stream that is cut loses what it would have written last.
                kept = expected if pseudo == "l2r" else expected[::-1]
                kept = kept[:steps] if pseudo == "l2r" else kept[:steps][::-1]
                np.testing.assert_array_equal(tokens, kept)
                assert (weights == partner.loss_on_pseudo).all()
    assert sorted(golds) == [(i, way) for i in range(len(lengths)) for way in ("l2r", "r2l")]


@pytest.mark.parametrize("pack", [True, False])
def test_an_iterator_is_restored_between_the_two_examples_of_a_pair(pack):
    draw = np.random.default_rng(1)
    pairs, _ = beside_pseudo([tuple(map(int, draw.integers(1, 8, 4))) for _ in range(21)])
    # Three rows: without packing a batch ends in the middle of a pair.
    config = BatchConfig(3, 16, 12, packing_bins=3, pack=pack)

    def start():
        return contextlib.closing(training_batches(pairs, BOTH, config, PSEUDO, seed=3))

    with start() as batches:
        for _ in range(5):
            next(batches)
        state = json.loads(json.dumps(batches.get_state()))
        expected = list(itertools.islice(batches, 12))
    with start() as restored:
        restored.set_state(state)
        for batch, other in zip(itertools.islice(restored, 12), expected, strict=True):
            for key in batch:
                np.testing.assert_array_equal(batch[key], other[key])
