"""Tokens taken chunk by chunk, so that their logits never exist whole.

Letters: N tokens of a batch or of a chunk.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# Tokens whose logits exist at a time: many enough for a full matrix product, few enough to take
# 16 MiB over 8,000 tokens of vocabulary and 64 MiB over 32,000.
CHUNK_TOKENS = 512


def scan_chunks(
    function: Callable[[Any, Any], tuple[Any, Any]], carry: Any, tokens: Any
) -> tuple[Any, Any]:
    """`jax.lax.scan` over chunks of at most `CHUNK_TOKENS` tokens.

    Args:
        function: takes a carry and a chunk of `tokens`, returns a carry and what it makes of the
            chunk, each leaf [N, ...]. The last chunk is filled up with zeros.
        carry: the first.
        tokens: a tree of arrays [N, ...], N the same for all.

    Returns:
        The last carry, and what was made of all tokens, each leaf [N, ...].
    """
    count = jax.tree.leaves(tokens)[0].shape[0]
    chunks = math.ceil(count / CHUNK_TOKENS)
    size = math.ceil(count / chunks)

    def divided(values: jax.Array) -> jax.Array:
        padding = [(0, chunks * size - count)] + [(0, 0)] * (values.ndim - 1)
        return jnp.pad(values, padding).reshape(chunks, size, *values.shape[1:])

    def whole(values: jax.Array) -> jax.Array:
        return values.reshape(chunks * size, *values.shape[2:])[:count]

    carry, made = jax.lax.scan(function, carry, jax.tree.map(divided, tokens))
    return carry, jax.tree.map(whole, made)
