"""Streams of any target. T target steps, W ways."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bidi.data.ragged import Ragged
from bidi.data.streams import Streams
from bidi.tokens import BOS, EOS, FIRST_TEXT_ID, L2R, PAD, R2L

TARGETS = st.lists(st.integers(FIRST_TEXT_ID, 40), max_size=12).map(
    lambda ids: np.array(ids, np.int32)
)
STREAMS = st.builds(
    Streams, ways=st.sampled_from(["l2r", "r2l", "both"]), markers=st.sampled_from(["swap", "tags"])
)


@given(STREAMS, TARGETS)
def test_a_stream_writes_its_target_and_then_its_end(streams, target):
    tokens = streams.tokens(target)
    for way, direction in enumerate(streams.directions):
        written = tokens["labels"][:-1, way]
        np.testing.assert_array_equal(written[:: 1 if direction == "l2r" else -1], target)
        assert tokens["labels"][-1, way] == streams.ends[way]


@given(STREAMS, TARGETS)
def test_inputs_are_the_labels_one_step_later(streams, target):
    tokens = streams.tokens(target)
    np.testing.assert_array_equal(tokens["inputs"][0], streams.starts)
    np.testing.assert_array_equal(tokens["inputs"][1:], tokens["labels"][:-1])


@given(STREAMS, TARGETS)
def test_every_label_counts_and_nothing_reads_as_padding(streams, target):
    tokens = streams.tokens(target)
    shape = (len(target) + 1, len(streams.directions))
    assert {key: (value.shape, value.dtype) for key, value in tokens.items()} == {
        "inputs": (shape, np.int32),
        "labels": (shape, np.int32),
        "weights": (shape, np.float32),
    }
    assert (tokens["weights"] == 1).all()
    assert (tokens["inputs"] != PAD).all()


@given(st.sampled_from(["swap", "tags"]), TARGETS, TARGETS)
def test_streams_of_unequal_length_end_each_at_its_own_place(markers, left, right):
    """Each is the stream that it would be alone, and behind its end there is nothing."""
    parts = {"l2r": Ragged.of([left]), "r2l": Ragged.of([right])}
    tokens = Streams("both", markers).beside(parts).arrays
    for way, (direction, target) in enumerate({"l2r": left, "r2l": right}.items()):
        for key, alone_T1 in Streams(direction, markers).tokens(target).items():
            value_T = tokens[key][:, way]
            np.testing.assert_array_equal(value_T[: len(target) + 1], alone_T1[:, 0])
            assert not value_T[len(target) + 1 :].any()
    assert len(tokens["labels"]) == max(len(left), len(right)) + 1


@given(st.sampled_from(["swap", "tags"]), TARGETS)
def test_both_ways_are_the_two_single_ones_side_by_side(markers, target):
    both = Streams("both", markers)
    alone = [Streams(way, markers) for way in both.directions]
    assert both.directions == ("l2r", "r2l")
    assert both.starts == tuple(one.starts[0] for one in alone)
    assert both.ends == tuple(one.ends[0] for one in alone)
    for key, value_TW in both.tokens(target).items():
        each = [one.tokens(target)[key] for one in alone]
        np.testing.assert_array_equal(value_TW, np.concatenate(each, axis=1))


@given(st.sampled_from(["swap", "tags"]), TARGETS)
def test_ways_mirror_each_other(markers, target):
    """What one way writes of a target the other writes of the target reversed."""
    streams = Streams("both", markers)
    forward, backward = streams.tokens(target), streams.tokens(target[::-1])
    np.testing.assert_array_equal(forward["labels"][:-1], backward["labels"][:-1, ::-1])
    np.testing.assert_array_equal(forward["inputs"][1:], backward["inputs"][1:, ::-1])


@pytest.mark.parametrize(
    ("markers", "starts", "ends"),
    [("swap", (BOS, EOS), (EOS, BOS)), ("tags", (L2R, R2L), (EOS, EOS))],
)
def test_markers(markers, starts, ends):
    streams = Streams("both", markers)
    assert streams.starts == starts
    assert streams.ends == ends


HALVES = st.sampled_from([Streams("both", markers, "halves") for markers in ("swap", "tags")])


@given(HALVES, TARGETS)
def test_halves_are_the_two_parts_of_a_whole(streams, target):
    """Each end writes its part and its end marker; the left part has the middle token."""
    tokens = streams.tokens(target)
    steps_W = (tokens["inputs"] != PAD).sum(axis=0)
    left, right = (tokens["labels"][: steps - 1, way] for way, steps in enumerate(steps_W))
    assert len(left) - len(right) in (0, 1)
    np.testing.assert_array_equal(np.concatenate([left, right[::-1]]), target)
    assert steps_W.max() == len(tokens["inputs"]) == streams.length(len(target))
    for way, steps in enumerate(steps_W):
        assert tokens["inputs"][0, way] == streams.starts[way]
        np.testing.assert_array_equal(
            tokens["inputs"][1:steps, way], tokens["labels"][: steps - 1, way]
        )
        assert tokens["labels"][steps - 1, way] == streams.ends[way]
        for key in ("inputs", "labels", "weights"):
            assert not tokens[key][steps:, way].any()
        assert (tokens["weights"][:steps, way] == 1).all()


@given(HALVES, TARGETS)
def test_halves_share_no_token(streams, target):
    """Nothing that one stream reads is a label of the other: each place is in one of them."""
    places = np.arange(len(target)) + 100
    tokens = streams.tokens(places)
    read, labels = (set(tokens[key][:, 0]) for key in ("inputs", "labels"))
    assert not (set(tokens["inputs"][:, 1]) - {PAD, streams.starts[1]}) & labels
    assert not (read - {PAD, streams.starts[0]}) & set(tokens["labels"][:, 1])


@given(STREAMS, TARGETS)
def test_length_is_what_the_streams_take(streams, target):
    assert streams.length(len(target)) == len(streams.tokens(target)["inputs"])


@given(st.one_of(STREAMS, HALVES), st.lists(TARGETS, max_size=6))
def test_many_targets_at_once_are_each_alone(streams, targets):
    made = streams.of_targets(Ragged.of(targets))
    np.testing.assert_array_equal(made.length_E, [streams.length(len(one)) for one in targets])
    each = [streams.tokens(target) for target in targets]
    for key, values_NW in made.arrays.items():
        alone = [one[key] for one in each] or [values_NW[:0]]
        np.testing.assert_array_equal(values_NW, np.concatenate(alone), strict=True)
