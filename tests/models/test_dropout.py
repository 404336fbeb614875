"""Dropout is flax's, wherever the rows are."""

import collections

import flax.linen as nn
import jax
import numpy as np
import pytest

from bidi.models.dropout import Dropout, threefry_bits
from tests.models.tiny import make_model, random_params, source_batch


def test_it_is_that_of_flax():
    """Bit for bit: by the same names and keys, the same masks."""
    x = np.random.default_rng(0).normal(size=(5, 3, 7)).astype("f4")
    for impl in ("threefry2x32", "rbg"):
        for rate in (0.0, 0.3, 0.9):
            made = [
                nn.Sequential([module(rate, deterministic=False) for _ in range(2)]).apply(
                    {}, x, rngs={"dropout": jax.random.key(1, impl=impl)}
                )
                for module in (Dropout, nn.Dropout)
            ]
            np.testing.assert_array_equal(*made)
            assert (made[0] == 0).any() == bool(rate)
    np.testing.assert_array_equal(Dropout(0.5).apply({}, x, deterministic=True), x)


@pytest.mark.parametrize("shape", [(1,), (7,), (4, 2, 9), (3, 1, 1, 5, 8)])
def test_bits_are_those_of_jax(shape):
    for seed in (0, 1, 2**31 + 5):
        key = jax.random.key(seed)
        bits = jax.random.bits(key, shape)
        np.testing.assert_array_equal(threefry_bits(key, shape), bits, strict=True)
    keys = jax.random.split(jax.random.key(3), 2)
    found = jax.vmap(lambda key: threefry_bits(key, shape))(keys)
    expected = jax.vmap(lambda key: jax.random.bits(key, shape))(keys)
    np.testing.assert_array_equal(found, expected, strict=True)


# Rates and how often each is applied in training: to the embeddings of both sides, to what every
# sublayer (two an encoder's layer, three a decoder's) or recurrent layer gives, and to what streams
# read of each other.
TRANSFORMER = {"encoder_layers": 1, "dropout": 0.1, "interaction": "layers", "future_dropout": 0.3}
RECURRENT = {"recurrent": True, "encoder_layers": 2, "decoder_layers": 3, "dropout": 0.1}
APPLIED = [(TRANSFORMER, {0.1: 2 + 2 + 2 * 3, 0.3: 2}), (RECURRENT, {0.1: 2 + 2 + 3})]


@pytest.mark.parametrize(("config", "expected"), APPLIED, ids=["transformer", "recurrent"])
@pytest.mark.parametrize("train", [True, False])
def test_models_apply_it_in_training_alone(config, expected, train):
    model = make_model(**config)
    streams = np.ones((2, 2, 4), np.int32)
    batch = source_batch(np.ones((2, 3), np.int32))
    batch |= dict.fromkeys(("inputs", "segments", "positions"), streams)
    applied = collections.Counter()

    def count(call, arguments, keywords, context):
        dropout = context.module
        if isinstance(dropout, Dropout) and context.method_name == "__call__":
            off = keywords.get("deterministic", dropout.deterministic)
            applied[dropout.rate] += not off
        return call(*arguments, **keywords)

    def run(params):
        rngs = {"dropout": jax.random.key(0)}
        return model.apply({"params": params}, batch, train, rngs=rngs)

    with nn.intercept_methods(count):
        jax.eval_shape(run, random_params(model))
    assert +applied == (expected if train else {})
