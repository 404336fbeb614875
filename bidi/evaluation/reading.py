"""Reads the sources of a whole queue before they are searched.

Letters: Q sentences of the queue, B rows of the search, C chunks.
"""

from typing import Any

import jax
import jax.numpy as jnp

from bidi.models.model import Batch, Model, Source


def read_sources(
    model: Model, variables: Any, batch: Batch, present_Q: jax.Array, rows: int
) -> Source:
    """`Model.start` of the sources of a queue, one each row.

    As many at a time as the search has rows. Where such a chunk has no sentence, as behind the last
    one of a queue that is not full, nothing is computed.

    Args:
        model: the model.
        variables: what it is applied with.
        batch: the sources, [Q, ...].
        present_Q: bool, where there is a sentence.
        rows: static, B, which divides Q.
    """

    def start(chunk: Batch) -> Source:
        source: Any = model.apply(variables, chunk, examples=1, method="start")
        return source

    if rows == len(present_Q):
        return start(batch)
    chunks = jax.tree.map(lambda x: x.reshape(-1, rows, *x.shape[1:]), (batch, present_Q))
    shapes = jax.eval_shape(start, jax.tree.map(lambda x: x[0], chunks[0]))
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def read(chunk: tuple[Batch, jax.Array]) -> Source:
        sources, present_B = chunk
        read: Source = jax.lax.cond(present_B.any(), lambda: start(sources), lambda: nothing)
        return read

    whole: Source = jax.tree.map(
        lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), jax.lax.map(read, chunks)
    )
    return whole
