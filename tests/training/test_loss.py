"""The loss against optax and against sums written out in numpy.

Letters: B batch, W ways, T target steps, D model, V vocabulary.
"""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bidi.models.output import Output, Prior
from bidi.training import chunks
from bidi.training.loss import cross_entropy
from tests.training.tiny import assert_trees_close

SHAPE = (3, 2, 5)  # BWT
V = 7


@functools.partial(jax.jit, static_argnums=3)
def loss_of(logits_BWTV, labels_BWT, weights_BWT, smoothing):
    """The loss of given logits: states that an identity projects."""
    return cross_entropy(logits_BWTV, Output(jnp.eye(V)), labels_BWT, weights_BWT, smoothing)


gradient_of = jax.jit(jax.grad(lambda *arguments: loss_of(*arguments).loss), static_argnums=3)


def make_case(seed, scale=3.0):
    rng = np.random.default_rng(seed)
    logits_BWTV = rng.normal(scale=scale, size=(*SHAPE, V)).astype(np.float32)
    labels_BWT = rng.integers(V, size=SHAPE, dtype=np.int32)
    weights_BWT = rng.integers(2, size=SHAPE).astype(np.float32)
    weights_BWT[0, :, 0] = 1
    return logits_BWTV, labels_BWT, weights_BWT


cases = st.builds(make_case, st.integers(0, 2**32 - 1), st.sampled_from([0.1, 3.0, 50.0]))


@jax.jit
def by_optax(logits_BWTV, labels_BWT, smoothing):
    smooth = optax.smooth_labels(jax.nn.one_hot(labels_BWT, V), smoothing)
    return optax.softmax_cross_entropy(logits_BWTV, smooth)


smoothings = st.sampled_from([0.0, 0.1, 0.5])


@given(cases, smoothings)
@settings(max_examples=30, deadline=None)
def test_loss_is_the_cross_entropy_to_smoothed_labels(case, smoothing):
    logits_BWTV, labels_BWT, weights_BWT = case
    expected_BWT = by_optax(logits_BWTV, labels_BWT, smoothing)
    sums = loss_of(logits_BWTV, labels_BWT, weights_BWT, smoothing)
    np.testing.assert_allclose(sums.loss, (expected_BWT * weights_BWT).sum(), rtol=1e-5)


@given(cases, smoothings)
@settings(max_examples=30, deadline=None)
def test_sums_of_each_direction(case, smoothing):
    logits_BWTV, labels_BWT, weights_BWT = case
    shifted = logits_BWTV.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    log_probs_BWTV = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    nll_BWT = -np.take_along_axis(log_probs_BWTV, labels_BWT[..., None], axis=-1)[..., 0]
    correct_BWT = logits_BWTV.argmax(axis=-1) == labels_BWT
    sums = loss_of(logits_BWTV, labels_BWT, weights_BWT, smoothing)
    for way in range(SHAPE[1]):
        weights = weights_BWT[:, way]
        np.testing.assert_allclose(
            sums.nll_W[way], (nll_BWT[:, way] * weights).sum(), rtol=1e-5, atol=1e-5
        )
        assert sums.correct_W[way] == (correct_BWT[:, way] * weights).sum()
        assert sums.tokens_W[way] == weights.sum()


def test_without_smoothing_the_loss_is_the_likelihood():
    sums = loss_of(*make_case(0), 0.0)
    np.testing.assert_allclose(sums.loss, sums.nll_W.sum(), rtol=1e-6)
    assert loss_of(*make_case(0), 0.1).loss != sums.loss


@given(cases, smoothings)
@settings(max_examples=20, deadline=None)
def test_what_has_no_weight_does_not_count(case, smoothing):
    logits_BWTV, labels_BWT, weights_BWT = case
    other_logits, other_labels, _ = make_case(1)
    here = weights_BWT > 0
    expected = loss_of(logits_BWTV, labels_BWT, weights_BWT, smoothing)
    actual = loss_of(
        np.where(here[..., None], logits_BWTV, other_logits),
        np.where(here, labels_BWT, other_labels),
        weights_BWT,
        smoothing,
    )
    assert_trees_close(actual, expected, rtol=1e-6)
    gradient = gradient_of(logits_BWTV, labels_BWT, weights_BWT, smoothing)
    assert not np.asarray(gradient)[~here].any()


def test_no_weight_at_all_gives_zeros():
    logits_BWTV, labels_BWT, weights_BWT = make_case(0)
    sums = loss_of(logits_BWTV, labels_BWT, np.zeros_like(weights_BWT), 0.1)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(sums))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_sums_of_parts_add_up_to_the_sum_of_the_whole(smoothing):
    arrays = make_case(3)
    rows = [loss_of(*(array[row : row + 1] for array in arrays), smoothing) for row in range(3)]
    total = jax.tree.map(lambda *parts: jnp.stack(parts).sum(axis=0), *rows)
    assert_trees_close(total, loss_of(*arrays, smoothing), rtol=1e-5)


def test_gradient_is_probabilities_minus_smoothed_labels():
    logits_BWTV, labels_BWT, weights_BWT = make_case(4)
    gradient = gradient_of(logits_BWTV, labels_BWT, weights_BWT, 0.1)
    target = optax.smooth_labels(jax.nn.one_hot(labels_BWT, V), 0.1)
    expected = (jax.nn.softmax(logits_BWTV) - target) * weights_BWT[..., None]
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_extreme_logits_stay_finite():
    logits_BWTV, labels_BWT, weights_BWT = make_case(5, scale=1e4)
    sums = loss_of(logits_BWTV, labels_BWT, weights_BWT, 0.1)
    assert np.isfinite(sums.loss)


def plain_loss(states_BWTD, output_VD, labels_BWT, weights_BWT):
    """By optax, from logits that exist whole."""
    logits_BWTV = jnp.einsum("bwtd,vd->bwtv", states_BWTD, output_VD)
    return (by_optax(logits_BWTV, labels_BWT, 0.1) * weights_BWT).sum()


def test_of_states_in_bfloat16_the_loss_is_float32s():
    rng = np.random.default_rng(8)
    states_BWTD, output_VD = (
        jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in ((*SHAPE, 8), (V, 8))
    )
    _, labels_BWT, weights_BWT = make_case(9)

    def loss(states_BWTD, output_VD):
        return cross_entropy(states_BWTD, Output(output_VD), labels_BWT, weights_BWT, 0.1).loss

    wide = states_BWTD.astype(jnp.float32), output_VD.astype(jnp.float32)
    expected, gradient = jax.value_and_grad(plain_loss, argnums=1)(*wide, labels_BWT, weights_BWT)
    actual, of_table = jax.value_and_grad(loss, argnums=1)(states_BWTD, wide[1])
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    np.testing.assert_allclose(of_table, gradient, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("chunk_tokens", [1, 4, 7, 30, 512])
def test_chunks_change_nothing(chunk_tokens, monkeypatch):
    """Nor do chunks that the tokens do not fill: sums and both gradients are the plain loss's."""
    monkeypatch.setattr(chunks, "CHUNK_TOKENS", chunk_tokens)
    _, labels_BWT, weights_BWT = make_case(6)
    rng = np.random.default_rng(7)
    states_BWTD = rng.normal(size=(*SHAPE, 4)).astype(np.float32)
    output_VD = rng.normal(size=(V, 4)).astype(np.float32)

    def scaled_loss(states_BWTD, output_VD):
        return 3 * cross_entropy(states_BWTD, Output(output_VD), labels_BWT, weights_BWT, 0.1).loss

    expected, gradients = jax.value_and_grad(plain_loss, argnums=(0, 1))(
        states_BWTD, output_VD, labels_BWT, weights_BWT
    )
    actual, scaled = jax.jit(jax.value_and_grad(scaled_loss, argnums=(0, 1)))(
        states_BWTD, output_VD
    )
    np.testing.assert_allclose(actual, 3 * expected, rtol=1e-5)
    assert_trees_close(scaled, jax.tree.map(lambda g: 3 * g, gradients), rtol=1e-4, atol=1e-5)
    # Without a gradient the sums are the same.
    np.testing.assert_allclose(scaled_loss(states_BWTD, output_VD), actual, rtol=1e-6)


@pytest.mark.parametrize("chunk_tokens", [4, 512])
def test_the_prior_has_the_gradient_of_its_definition(chunk_tokens, monkeypatch):
    """What the source's words add, by plain differentiation of logits that exist whole."""
    monkeypatch.setattr(chunks, "CHUNK_TOKENS", chunk_tokens)
    _, labels_BWT, weights_BWT = make_case(8)
    rng = np.random.default_rng(9)
    learned = {
        "states": rng.normal(size=(*SHAPE, 4)).astype(np.float32),
        "table": rng.normal(size=(V, 4)).astype(np.float32),
        "scale": rng.normal(size=V).astype(np.float32),
        "bias": rng.normal(size=V).astype(np.float32),
    }
    occurs_EV = jnp.asarray(rng.random((6, V)) < 0.4)
    example_BWT = rng.integers(6, size=SHAPE, dtype=np.int32)

    def plain(learned):
        logits_BWTV = jnp.einsum("bwtd,vd->bwtv", learned["states"], learned["table"])
        prior_EV = occurs_EV * learned["scale"][None] + learned["bias"][None]
        losses_BWT = by_optax(logits_BWTV + prior_EV[example_BWT], labels_BWT, 0.1)
        return 3 * (losses_BWT * weights_BWT).sum()

    def chunked(learned):
        prior = Prior(learned["scale"], learned["bias"], occurs_EV, example_BWT)
        output = Output(learned["table"], prior)
        return 3 * cross_entropy(learned["states"], output, labels_BWT, weights_BWT, 0.1).loss

    expected, expected_gradient = jax.value_and_grad(plain)(learned)
    actual, gradient = jax.jit(jax.value_and_grad(chunked))(learned)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    assert_trees_close(gradient, expected_gradient, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(chunked(learned), expected, rtol=1e-5)


def test_logits_never_exist_whole(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_TOKENS", 8)
    monkeypatch.setattr(chunks, "GPU_CHUNK_TOKENS", 8)
    _, labels_BWT, weights_BWT = make_case(6)
    states_BWTD, output_VD = jnp.ones((*SHAPE, 4)), jnp.ones((V, 4))

    def loss(states_BWTD, output_VD):
        return cross_entropy(states_BWTD, Output(output_VD), labels_BWT, weights_BWT, 0.1).loss

    program = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(states_BWTD, output_VD))
    sizes = {
        math.prod(map(int, dimensions.split(",")))
        for dimensions in re.findall(r"f32\[([\d,]+)\]", program)
    }
    assert 8 * V in sizes
    assert max(sizes) < labels_BWT.size * V
