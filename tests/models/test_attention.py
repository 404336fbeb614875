"""Attention, masks and fusion against their definitions in numpy.

B batch, P pairs, W ways, T target steps, S source or cached steps, H heads, E head width, D model.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bidi.models.attention import (
    Fusion,
    attend,
    attend_both,
    attend_other,
    attend_step,
    future_mask,
    history_mask,
    masked_softmax,
    merge_heads,
    source_mask,
    split_heads,
)

attend_both_by = {
    by: jax.jit(functools.partial(attend_both, by=by)) for by in (attend, attend_step)
}
attend_other = jax.jit(functools.partial(attend_other, by=attend))
# The first example compiles.
VARIED = settings(max_examples=40, deadline=None)


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def numpy_attend(q_TE, k_SE, v_SE, mask_TS):
    read_TE = np.zeros((len(q_TE), v_SE.shape[1]))
    for t, seen in enumerate(mask_TS):
        if seen.any():
            weights = np.exp(k_SE[seen] @ q_TE[t] / np.sqrt(q_TE.shape[1]))
            read_TE[t] = weights / weights.sum() @ v_SE[seen]
    return read_TE


@VARIED
@given(hnp.arrays(bool, (2, 1, 3, 5)))
def test_attend_is_its_definition(mask_B1TS):
    q, k, v = normal(2, 2, 3, 4), normal(2, 2, 5, 4), normal(2, 2, 5, 4, seed=1)
    found = np.asarray(jax.jit(attend)(q, k, v, mask_B1TS))
    for b, h in np.ndindex(2, 2):
        expected = numpy_attend(q[b, h], k[b, h], v[b, h], mask_B1TS[b, 0])
        np.testing.assert_allclose(found[b, h], expected, atol=1e-5)
    sees_nothing = ~np.broadcast_to(mask_B1TS, (2, 2, 3, 5)).any(axis=-1)
    assert (found[sees_nothing] == 0).all()


@pytest.mark.parametrize(("platform", "first"), [("cpu", True), ("tpu", False), ("cuda", False)])
def test_keys_come_first_in_a_step_on_a_cpu_alone(platform, first):
    shapes = [jax.ShapeDtypeStruct((2, 3, n, 4), jnp.float32) for n in (2, 5, 5)]
    mask = jax.ShapeDtypeStruct((1, 1, 2, 5), bool)
    program = jax.jit(attend_step).trace(*shapes, mask).lower(lowering_platforms=(platform,))
    assert ("tensor<6x5x2xf32>" in program.as_text()) is first


@VARIED
@given(hnp.arrays(bool, (2, 3, 1, 2, 5)))
def test_a_step_reads_like_a_whole_stream(mask_BW1TS):
    q, k, v = normal(2, 3, 2, 2, 4), normal(2, 3, 2, 5, 4), normal(2, 3, 2, 5, 4, seed=1)
    found = jax.jit(attend_step)(q, k, v, mask_BW1TS)
    expected = jax.jit(attend)(q, k, v, mask_BW1TS)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 0.02)])
def test_the_gradient_of_the_softmax_is_that_of_jax(dtype, tolerance):
    logits, weights = normal(2, 3, 5).astype(dtype), normal(2, 3, 5, seed=1)
    mask = normal(2, 3, 5, seed=2) > 0
    mask[0, 1] = False

    def plain(logits):
        found = jax.nn.softmax(logits.astype("float32"), axis=-1, where=mask)
        return jnp.where(mask, found, 0.0).astype(dtype)

    found, expected = (
        jax.jit(jax.value_and_grad(lambda x, f=f: (f(x).astype("float32") * weights).sum()))(logits)
        for f in (lambda x: masked_softmax(x, mask), plain)
    )
    np.testing.assert_allclose(found[0], expected[0], rtol=tolerance)
    gradients = [np.asarray(one[1], np.float32) for one in (found, expected)]
    np.testing.assert_allclose(*gradients, atol=tolerance)
    assert (gradients[0][~mask] == 0).all()
    assert abs(gradients[0]).max() > 0.1


def test_gradients_are_finite_where_nothing_is_seen():
    """And nothing flows: neither to who sees nothing nor to who is not seen."""
    q, k, v = normal(2, 3, 4), normal(2, 5, 4), normal(2, 5, 4, seed=1)
    mask = np.ones((1, 3, 5), bool)
    mask[:, 1], mask[:, :, 4] = False, False
    weights = normal(2, 3, 4, seed=2)
    gradients = jax.jit(jax.grad(lambda *x: (attend(*x, mask) * weights).sum(), (0, 1, 2)))
    dq, dk, dv = gradients(q, k, v)
    for gradient in (dq, dk, dv):
        assert np.isfinite(gradient).all()
        assert (gradient != 0).any()
    assert (dq[:, 1] == 0).all()
    assert (dk[:, 4] == 0).all()
    assert (dv[:, 4] == 0).all()


SEGMENTS = hnp.arrays(np.int32, (2, 1, 2, 4), elements=st.integers(0, 2))


def numpy_mask(queries_T, keys_S):
    """A query sees what was read up to its own step, in its own segment."""
    return np.array(
        [
            [s <= t and key == query != 0 for s, key in enumerate(keys_S)]
            for t, query in enumerate(queries_T)
        ]
    )


@VARIED
@given(SEGMENTS)
def test_masks_are_their_definitions(segments_BPWT):
    history, future = (jax.jit(mask)(segments_BPWT) for mask in (history_mask, future_mask))
    assert history.shape == future.shape == (2, 1, 2, 1, 4, 4)
    for b, w in np.ndindex(2, 2):
        own, other = segments_BPWT[b, 0, w], segments_BPWT[b, 0, 1 - w]
        np.testing.assert_array_equal(history[b, 0, w, 0], numpy_mask(own, own))
        # The keys of way w, read by the other way.
        np.testing.assert_array_equal(future[b, 0, w, 0], numpy_mask(other, own))


@VARIED
@given(
    hnp.arrays(np.int32, (2, 3), elements=st.integers(0, 2)),
    hnp.arrays(np.int32, (2, 5), elements=st.integers(0, 2)),
)
def test_source_mask_joins_equal_segments(queries_BT, source_BS):
    expected = (queries_BT[:, :, None] == source_BS[:, None]) & (source_BS[:, None] != 0)
    np.testing.assert_array_equal(source_mask(queries_BT, source_BS)[:, 0], expected)


@VARIED
@given(SEGMENTS)
def test_attend_both_is_two_readings(segments_BPWT):
    shape_BPWHTE = (2, 1, 2, 2, 4, 4)
    # Of the other, only the last queries.
    q, k, v, other_q = (normal(*shape_BPWHTE, seed=seed) for seed in range(4))
    other_q = other_q[..., 1:, :]
    own_mask, other_mask = history_mask(segments_BPWT), future_mask(segments_BPWT)[..., 1:, :]
    of_streams, of_steps = (
        attend_both_by[by](q, other_q, k, v, own_mask, other_mask) for by in (attend, attend_step)
    )
    history, future = jax.device_get(of_streams)
    for b, w, h in np.ndindex(2, 2, 2):
        own, other = (b, 0, w, h), (b, 0, 1 - w, h)
        own_T, other_T = segments_BPWT[b, 0, w], segments_BPWT[b, 0, 1 - w]
        mask_own, mask_other = numpy_mask(own_T, own_T), numpy_mask(own_T, other_T)[1:]
        expected = numpy_attend(q[own], k[own], v[own], mask_own)
        np.testing.assert_allclose(history[own], expected, atol=1e-5)
        expected = numpy_attend(other_q[own], k[other], v[other], mask_other)
        np.testing.assert_allclose(future[own], expected, atol=1e-5)
        assert (future[own][~mask_other.any(axis=-1)] == 0).all()
    for found, expected in zip(of_steps, of_streams, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    alone = attend_other(other_q, k, v, other_mask)
    np.testing.assert_allclose(alone, future, atol=1e-6)


def test_heads_are_slices_of_the_model_size():
    x_BTD = normal(2, 3, 8)
    x_BHTE = split_heads(x_BTD, 2)
    np.testing.assert_array_equal(x_BHTE[:, 1], x_BTD[..., 4:])
    np.testing.assert_array_equal(merge_heads(x_BHTE), x_BTD)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("kind", ["tanh", "linear", "gate", "concat"])
def test_fusion_is_its_formula(kind):
    history, future = normal(3, 4), normal(3, 4, seed=1)
    params = {
        "tanh": {},
        "linear": {},
        "gate": {"gates": {"kernel": normal(8, 8), "bias": normal(8)}},
        "concat": {"join": {"kernel": normal(8, 4)}},
    }[kind]
    fusion = Fusion(kind, weight=0.3, dropout=0.5, train=False)
    shapes = jax.eval_shape(fusion.init, jax.random.key(0), history, future).get("params", {})
    assert jax.tree.map(np.shape, shapes) == jax.tree.map(np.shape, params)

    both = np.concatenate([history, future], axis=-1)
    if kind in ("tanh", "linear"):
        expected = history + 0.3 * (np.tanh(future) if kind == "tanh" else future)
    elif kind == "concat":
        expected = both @ params["join"]["kernel"]
    else:
        gates = both @ params["gates"]["kernel"] + params["gates"]["bias"]
        expected = sigmoid(gates[:, :4]) * history + sigmoid(gates[:, 4:]) * future
    found = fusion.apply({"params": params}, history, future)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_dropout_is_on_the_future_alone():
    history, future = normal(20, 50), np.ones((20, 50), np.float32)
    fusion = Fusion("linear", weight=0.3, dropout=0.5, train=True)
    found = fusion.apply({}, history, future, rngs={"dropout": jax.random.key(0)})
    added = np.asarray(found - history)
    dropped = added == 0
    np.testing.assert_allclose(added[~dropped], 2 * 0.3, atol=1e-5)
    assert 0.4 < dropped.mean() < 0.6
