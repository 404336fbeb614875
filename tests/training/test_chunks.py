"""Chunks of tokens against all tokens at once. N tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bidi.training import chunks


@pytest.mark.parametrize(("count", "runs"), [(1, 1), (7, 1), (8, 2), (14, 2), (15, 3)])
def test_every_token_once_and_in_order(count, runs, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_TOKENS", 7)
    tokens = {"a": np.arange(count) + 1, "b": np.arange(2.0 * count).reshape(count, 2)}
    sizes = []

    def add(of_rows, chunk):
        assert of_rows == "rows"
        sizes.append(len(chunk["a"]))
        return (1, chunk["a"].sum()), chunk["a"][:, None] * chunk["b"]

    sums, made = chunks.scan_chunks(add, (0, jnp.int32(0)), tokens, "rows")
    assert sums == (runs, tokens["a"].sum())
    assert max(sizes) <= 7
    np.testing.assert_array_equal(made, tokens["a"][:, None] * tokens["b"])


@pytest.mark.parametrize(
    ("platform", "chunk"), [("cpu", 512), ("tpu", 512), ("cuda", 2048), ("rocm", 2048)]
)
def test_chunks_are_as_large_as_the_device_likes_them(platform, chunk):
    def total(tokens):
        return chunks.scan_chunks(lambda _, chunk: (chunk.sum(), chunk), jnp.float32(0), tokens)

    traced = jax.jit(total).trace(jax.ShapeDtypeStruct((4096, 3), jnp.float32))
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    assert f"tensor<{4096 // chunk}x{chunk}x3xf32>" in program
    assert f"tensor<{chunk}x3xf32>" in program
