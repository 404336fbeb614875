"""Chunks of tokens against all tokens at once. N tokens."""

import jax.numpy as jnp
import numpy as np
import pytest

from bidi.training import chunks


@pytest.mark.parametrize(("count", "runs"), [(1, 1), (7, 1), (8, 2), (14, 2), (15, 3)])
def test_every_token_once_and_in_order(count, runs, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_TOKENS", 7)
    tokens = {"a": np.arange(count) + 1, "b": np.arange(2.0 * count).reshape(count, 2)}
    sizes = []

    def add(carry, chunk):
        sizes.append(len(chunk["a"]))
        return (carry[0] + 1, carry[1] + chunk["a"].sum()), chunk["a"][:, None] * chunk["b"]

    carry, made = chunks.scan_chunks(add, (0, jnp.int32(0)), tokens)
    assert carry == (runs, tokens["a"].sum())
    assert max(sizes) <= 7
    np.testing.assert_array_equal(made, tokens["a"][:, None] * tokens["b"])
