"""Reads the sources of a whole queue before they are searched, and hands them to the rows.

Letters: Q sentences of the queue, B rows of the search, C chunks.
"""

from typing import Any

import flax.struct
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
        source: Source = jax.lax.cond(present_B.any(), lambda: start(sources), lambda: nothing)
        return source

    whole: Source = jax.tree.map(
        lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), jax.lax.map(read, chunks)
    )
    return whole


@flax.struct.dataclass
class AtWork:
    """What the rows of a search read.

    Attributes:
        sentence_B: int32, the sentence of each row, a place in the queue.
        source: theirs, row after row.
    """

    sentence_B: jax.Array
    source: Source

    @classmethod
    def first(cls, queue: Source, rows: int) -> "AtWork":
        """The first sentences of the queue, one each row."""
        sentence_B = jnp.arange(rows, dtype=jnp.int32)
        source: Source = jax.tree.map(lambda leaf: leaf[:rows], queue)
        return cls(sentence_B, source)

    def follow(self, queue: Source, sentence_B: jax.Array) -> "AtWork":
        """Of the sentences that the rows now work on."""
        with jax.named_scope("bookkeeping"):
            source = jax.lax.platform_dependent(
                self, queue, sentence_B, cpu=_copied_where_taken, default=_copied
            )
        return AtWork(sentence_B, source)


def _copied_where_taken(at_work: AtWork, queue: Source, sentence_B: jax.Array) -> Source:
    """Row by row, where a row has taken another sentence.

    To copy all rows' at every step is up to 8 % of a search on a CPU. A GPU would wait for its host
    at every turn of such a loop; for TPUs a gather is part of the product that reads it.
    """
    took_B = sentence_B != at_work.sentence_B
    (row_B,) = jnp.nonzero(took_B, size=len(took_B))

    def copy(turn: jax.Array, source: Source) -> Source:
        row = row_B[turn]
        copied: Source = jax.tree.map(
            lambda leaf, of_queue: leaf.at[row].set(of_queue[sentence_B[row]]), source, queue
        )
        return copied

    source: Source = jax.lax.fori_loop(0, took_B.sum(), copy, at_work.source)
    return source


def _copied(_: AtWork, queue: Source, sentence_B: jax.Array) -> Source:
    return queue.rows(sentence_B)
