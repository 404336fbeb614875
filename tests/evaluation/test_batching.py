from unittest import mock

import jax
import numpy as np
import pytest

from bidi.evaluation import batching
from bidi.evaluation.batching import ENOUGH, QUEUE, Batching, usual_tokens


def queues(batching, lengths):
    for members, length in batching.groups(lengths):
        for indices, shape in batching.queues(members, length):
            assert shape.length == length
            yield indices, shape


def test_few_lengths_of_rows_an_eighth_apart_at_most():
    assert [batching._bucket(n) for n in (1, 8, 9, 64, 65, 80, 129, 257)] == [
        *(8, 8, 16, 64, 80, 80, 160, 320)
    ]


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_rows_are_dealt_out_and_come_back(devices):
    batching = Batching(64, tuple(jax.devices()[:devices]))
    tree = {"a": np.arange(16), "b": np.arange(48).reshape(16, 3)}
    divided = batching.divided(tree)
    assert divided["b"].shape == (devices, 16 // devices, 3)
    np.testing.assert_array_equal(divided["a"][0], np.arange(0, 16, devices))
    jax.tree.map(np.testing.assert_array_equal, batching.joined(divided), tree)


@pytest.mark.parametrize("devices", [1, 2, 3])
def test_devices_have_sources_of_like_lengths_the_longest_first(devices):
    lengths = np.random.default_rng(0).integers(1, 30, 101)
    batching = Batching(64, tuple(jax.devices()[:devices]))
    seen = []
    for indices, shape in queues(batching, lengths):
        of_queue = lengths[indices]
        assert of_queue.max() <= shape.length
        assert shape.rows % devices == shape.sources % shape.rows == 0
        assert (np.diff(of_queue) <= 0).all()
        filled = np.zeros(shape.sources, int)
        filled[: len(indices)] = of_queue
        work = batching.divided(filled).sum(axis=1)
        assert work.max() - work.min() <= shape.length
        seen += indices.tolist()
    assert sorted(seen) == list(range(101))


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("count", [1, 5, 400])
def test_rows_have_several_sources_each_while_there_are_any(devices, count):
    lengths = np.random.default_rng(0).integers(1, 100, count)
    batching = Batching(256, tuple(jax.devices()[:devices]))
    sources_of: dict[int, int] = {}
    rows_of = {}
    for indices, shape in queues(batching, lengths):
        assert len(indices) <= shape.sources <= QUEUE * shape.rows
        sources_of[shape.length] = sources_of.get(shape.length, 0) + len(indices)
        rows_of[shape.length] = shape.rows
    *all_but_longest, _ = sources_of
    assert all(sources_of[length] >= ENOUGH * rows_of[length] for length in all_but_longest)
    # Many are not padded to the greatest length, few are all searched together.
    assert len(sources_of) > 3 if count == 400 else len(sources_of) == 1


def test_a_source_joins_longer_ones_only_where_its_like_are_few():
    batching = Batching(64, tuple(jax.devices()[:1]))
    many, few = [8] * ENOUGH * 8, [8] * (ENOUGH * 8 - 1)
    assert [length for _, length in batching.groups([*many, 30])] == [8, 32]
    assert [length for _, length in batching.groups([*few, 30])] == [32]


@pytest.mark.parametrize(("count", "expected"), [(128, [128]), (129, [65, 64]), (300, [100] * 3)])
def test_no_queue_is_the_rest_of_others(count, expected):
    """Eight rows have a queue of 128."""
    found = [len(indices) for indices, _ in queues(Batching(64, (jax.devices()[0],)), [8] * count)]
    assert found == expected


@pytest.mark.parametrize(("platform", "each"), [("cpu", 1024), ("gpu", 4096), ("tpu", 4096)])
def test_a_cpu_searches_fewer_at_once(platform, each):
    devices = [mock.Mock(platform=platform)] * 3
    assert usual_tokens(devices) == 3 * each
