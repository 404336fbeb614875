"""Dropout whose random bits are drawn where the rows are."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from bidi.models.axes import RULES, row_shards


class Dropout(nn.Module):
    """`nn.Dropout` of arrays that begin with rows, [B, ...] -> [B, ...].

    Attributes:
        rate: probability that a value is 0.
        deterministic: whether to do nothing; here or in the call.
    """

    rate: float
    deterministic: bool | None = None

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool | None = None) -> jax.Array:
        """The others are as much larger; needs the rng `dropout`."""
        off = nn.merge_param("deterministic", self.deterministic, deterministic)
        if off or not self.rate:
            return x
        kept = _bernoulli(self.make_rng("dropout"), 1.0 - self.rate, x.shape)
        return jnp.where(kept, x / (1.0 - self.rate), jnp.zeros_like(x))


def _bernoulli(rng: jax.Array, probability: float, shape: tuple[int, ...]) -> jax.Array:
    """`jax.random.bernoulli`; where a mesh divides the rows, of each share by a key of its own.

    XLA divides the drawing of threefry's bits, but no other generator's: each device would draw
    those of all rows.
    """
    shards = row_shards()
    if shards == 1 or str(jax.random.key_impl(rng)) == "threefry2x32":
        return jax.random.bernoulli(rng, probability, shape)

    def of_share(rng: jax.Array) -> jax.Array:
        own = jax.random.fold_in(rng, jax.lax.axis_index(RULES["rows"]))
        return jax.random.bernoulli(own, probability, (shape[0] // shards, *shape[1:]))

    rows = PartitionSpec(RULES["rows"])
    return jax.shard_map(of_share, in_specs=PartitionSpec(), out_specs=rows)(rng)
