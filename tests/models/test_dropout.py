"""Dropout is flax's, wherever the rows are."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from bidi.models.dropout import Dropout, threefry_bits


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
