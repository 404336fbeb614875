"""The decoder's attention to the source.

Letters: B batch, P pairs, W ways, G decoders (1 shared, or W own ones), R ways of one (W / G),
S source steps, T target steps, H heads, E head width, D model, N queries of one decoder
(P * R * T).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from bidi.models.attention import Attend, merge_heads, source_mask, split_heads
from bidi.models.cache import KeysValues
from bidi.models.dense import Dense, Projections
from bidi.models.sublayers import of_each_way, per_way


class SourceAttention(nn.Module):
    """Streams read the source; its keys and values are made once a sentence, not once a pair.

    Attributes:
        size: D.
        heads: H.
        ways: W.
        own: whether each way has parameters of its own.
        dtype: of activations.
    """

    size: int
    heads: int
    ways: int
    own: bool
    dtype: jnp.dtype

    def setup(self):
        self.q = per_way(Dense, self.own)(self.size, dtype=self.dtype)
        self.out = per_way(Dense, self.own)(self.size, dtype=self.dtype)
        projections = of_each_way(Projections, self.ways) if self.own else Projections
        self.kv = projections(2, self.size, dtype=self.dtype)

    def project(self, encoded_BSD: jax.Array) -> KeysValues:
        """Keys and values of each decoder, both [B, G, H, S, E]."""
        keys, values = (x if self.own else x[:, None] for x in self.kv(encoded_BSD))
        return split_heads(keys, self.heads), split_heads(values, self.heads)

    def read(
        self, x_BPWTD: jax.Array, source: KeysValues, mask: jax.Array, by: Attend
    ) -> jax.Array:
        """What the heads read, [B, P, W, T, D] -> [B, P, W, T, D]; `mask` and `by`: see `Call`."""
        keys_BGHSE, values_BGHSE = source
        queries_BGND = group_by_decoder(self.q(x_BPWTD), keys_BGHSE.shape[1])
        read = by(split_heads(queries_BGND, self.heads), keys_BGHSE, values_BGHSE, mask)
        return ungroup(merge_heads(read), x_BPWTD.shape)

    def __call__(
        self, x_BPWTD: jax.Array, source: KeysValues, mask: jax.Array, by: Attend
    ) -> jax.Array:
        """[B, P, W, T, D] -> [B, P, W, T, D]."""
        return self.out(self.read(x_BPWTD, source, mask, by))


def group_by_decoder(x_BPWT: jax.Array, decoders: int) -> jax.Array:
    """What reads the same keys in one axis: [B, P, W, T, ...] -> [B, G, P * R * T, ...].

    In the order in which it lies: of a shared decoder nothing is moved.
    """
    batch, pairs, ways, steps, *rest = x_BPWT.shape
    x = x_BPWT.reshape(batch, pairs, decoders, ways // decoders, steps, *rest)
    return x.swapaxes(1, 2).reshape(batch, decoders, -1, *rest)


def ungroup(x_BGN: jax.Array, shape_BPWT: tuple[int, ...]) -> jax.Array:
    """Undoes `group_by_decoder`: [B, G, P * R * T, ...] -> [B, P, W, T, ...]."""
    batch, pairs, ways, steps, *rest = shape_BPWT
    decoders = x_BGN.shape[1]
    x = x_BGN.reshape(batch, decoders, pairs, ways // decoders, steps, *rest)
    return x.swapaxes(1, 2).reshape(shape_BPWT)


def stream_source_mask(
    segments_BPWT: jax.Array, source_segments_BS: jax.Array, decoders: int
) -> jax.Array:
    """`attention.source_mask` for queries laid by `group_by_decoder`: [B, G, 1, P * R * T, S]."""
    queries_BGN = group_by_decoder(segments_BPWT, decoders)
    return jax.vmap(source_mask, in_axes=(1, None), out_axes=1)(queries_BGN, source_segments_BS)
