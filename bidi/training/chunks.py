"""Tokens taken chunk by chunk, so that their logits never exist whole.

Letters: R shares of the rows of a mesh, N tokens of a batch, of a share or of a chunk.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bidi.models.axes import constrain, row_shards

# Tokens whose logits exist at a time: many enough for a full matrix product, few enough to take
# 16 MiB over 8,000 tokens of vocabulary and 64 MiB over 32,000, which a TPU keeps beside its cores.
# A GPU cannot; there the most is to read and write the table's gradient for every chunk.
CHUNK_TOKENS = 512
GPU_CHUNK_TOKENS = 2048


def scan_chunks(
    function: Callable[[Any, Any], tuple[Any, Any]], zero: Any, tokens: Any, of_rows: Any = None
) -> tuple[Any, Any]:
    """`jax.lax.scan` over chunks of at most `CHUNK_TOKENS` tokens, of more on a GPU.

    Where a mesh divides the rows, each share has chunks of its own: none of its tokens goes
    elsewhere, and what is added up is added up over all shares once, in the end.

    Args:
        function: takes `of_rows` and a chunk of `tokens`, returns what is to be added up and what
            it makes of the chunk, each leaf [N, ...]. The last chunk is filled up with zeros.
        zero: of what is added up.
        tokens: a tree of arrays [N, ...], N the same for all, row after row.
        of_rows: a tree of arrays that have something for each row, row after row; `function` gets
            that of the rows of its chunk's share.

    Returns:
        The sums, and what was made of all tokens, each leaf [N, ...].
    """
    shards = row_shards()
    scan = functools.partial(_scan, function, zero)
    if shards == 1:
        return scan(tokens, of_rows)

    def divided(values: jax.Array) -> jax.Array:
        return constrain(values.reshape(shards, -1, *values.shape[1:]), "rows")

    def whole(values: jax.Array) -> jax.Array:
        return constrain(values, "rows").reshape(-1, *values.shape[2:])

    of_share = jax.vmap(scan)
    sums, made = of_share(jax.tree.map(divided, tokens), jax.tree.map(divided, of_rows))
    return jax.tree.map(lambda x: x.sum(axis=0), sums), jax.tree.map(whole, made)


def _scan(
    function: Callable[[Any, Any], tuple[Any, Any]], zero: Any, tokens: Any, of_rows: Any
) -> tuple[Any, Any]:
    scan, on_gpu = (
        functools.partial(_scan_by, function, zero, most)
        for most in (CHUNK_TOKENS, GPU_CHUNK_TOKENS)
    )
    return jax.lax.platform_dependent(tokens, of_rows, cuda=on_gpu, rocm=on_gpu, default=scan)


def _scan_by(
    function: Callable[[Any, Any], tuple[Any, Any]],
    zero: Any,
    most: int,
    tokens: Any,
    of_rows: Any,
) -> tuple[Any, Any]:
    count = jax.tree.leaves(tokens)[0].shape[0]
    chunks = math.ceil(count / most)
    size = math.ceil(count / chunks)

    def divided(values: jax.Array) -> jax.Array:
        padding = [(0, chunks * size - count)] + [(0, 0)] * (values.ndim - 1)
        return jnp.pad(values, padding).reshape(chunks, size, *values.shape[1:])

    def whole(values: jax.Array) -> jax.Array:
        return values.reshape(chunks * size, *values.shape[2:])[:count]

    def add(sums: Any, chunk: Any) -> tuple[Any, Any]:
        added, made = function(of_rows, chunk)
        return jax.tree.map(jnp.add, sums, added), made

    sums, made = jax.lax.scan(add, zero, jax.tree.map(divided, tokens))
    return sums, jax.tree.map(whole, made)
