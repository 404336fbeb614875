"""Sources of a queue that are read by chunks.

Q sentences of the queue, B rows, S source steps.
"""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from bidi.evaluation import reading
from bidi.evaluation.batching import source_batch
from bidi.evaluation.reading import AtWork, read_sources
from bidi.models.model import Source
from tests.models import tiny

SOURCES = [np.array(ids, np.int32) for ids in ([4, 5, 2], [6, 2], [5, 5, 4, 2])]
QUEUE, ROWS = 8, 2

MODELS = {
    "transformer": {},
    "own decoders": {"own_decoders": True},
    "recurrent": {"recurrent": True, "joint": True, "copy_prior": True},
}


def read(model, params, batch, present, rows):
    program = jax.jit(read_sources, static_argnums=(0, 4))
    return program(model, {"params": params}, batch, present, rows)


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_they_are_read_as_all_at_once_and_nothing_where_none_is(config):
    model = tiny.make_model(2, **config)
    params = tiny.random_params(model, 0)
    batch = source_batch(SOURCES, 4, QUEUE)
    present_Q = jnp.arange(QUEUE) < len(SOURCES)
    read_at_once = read(model, params, batch, present_Q, QUEUE)
    by_chunks = read(model, params, batch, present_Q, ROWS)

    def compare(one, other):
        np.testing.assert_allclose(one[: len(SOURCES)], other[: len(SOURCES)], atol=1e-5)
        assert np.any(one[: len(SOURCES)])
        # The chunk of the last sentence is read whole, those behind it are not.
        assert not np.any(one[len(SOURCES) + 1 :])

    jax.tree.map(compare, by_chunks, read_at_once)


def test_a_sentence_behind_a_chunk_of_none_is_read():
    model = tiny.make_model(1)
    params = tiny.random_params(model, 0)
    batch = source_batch([SOURCES[0]] * QUEUE, 4, QUEUE)
    present_Q = jnp.arange(QUEUE) == QUEUE - 1
    for leaf in jax.tree.leaves(read(model, params, batch, present_Q, ROWS)):
        assert np.any(leaf[-1])
        assert not np.any(leaf[:-ROWS])


@pytest.mark.parametrize(("platform", "loop"), [("cpu", True), ("tpu", False), ("cuda", False)])
def test_rows_copy_one_by_one_on_a_cpu_alone(platform, loop):
    queue = jax.eval_shape(lambda: Source(jnp.zeros((30, 2)), None))
    at_work = jax.eval_shape(lambda: AtWork.first(Source(jnp.zeros((30, 2)), None), 3))
    taken_B = jax.ShapeDtypeStruct((3,), jnp.int32)
    program = jax.jit(AtWork.follow).trace(at_work, queue, taken_B)
    assert ("while" in program.lower(lowering_platforms=(platform,)).as_text()) is loop


@hypothesis.given(st.data())
@hypothesis.settings(max_examples=20, deadline=None)
def test_rows_read_the_sentences_that_they_take(data):
    rows = data.draw(st.sampled_from([1, 3, 8]))
    queue = Source({"x": jnp.arange(60).reshape(30, 2)}, jnp.arange(30, 60))
    at_work = AtWork.first(queue, rows)
    for _ in range(3):
        sentence_B = [
            data.draw(st.just(int(kept)) | st.integers(0, 29)) for kept in at_work.sentence_B
        ]
        sentence_B = jnp.array(sentence_B, jnp.int32)
        # What other platforms do.
        expected = AtWork(sentence_B, reading._copied(at_work, queue, sentence_B))
        np.testing.assert_array_equal(expected.source.encoded["x"][:, 0], 2 * sentence_B)
        at_work = jax.jit(AtWork.follow)(at_work, queue, sentence_B)
        jax.tree.map(np.testing.assert_array_equal, at_work, expected)
