"""Dropout whose random bits are drawn where the rows are."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from bidi.models.axes import RULES, row_shards, steps_as_one_axis

_COUNTS = 2**32
_PARITY = 0x1BD11BDA
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


class Dropout(nn.Module):
    """`nn.Dropout` of arrays that begin with rows, [B, ...] -> [B, ...].

    Attributes:
        rate: probability that a value is 0, less than 1.
        deterministic: whether to do nothing; here or in the call.
    """

    rate: float
    deterministic: bool | None = None

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool | None = None) -> jax.Array:
        """What is kept is divided by 1 - `rate`; needs the rng `dropout`."""
        off = nn.merge_param("deterministic", self.deterministic, deterministic)
        if off or not self.rate:
            return x
        # All steps in one axis, or XLA on a CPU draws the bits anew for each use of the gradient.
        flat = steps_as_one_axis(x)
        kept = _bernoulli(self.make_rng("dropout"), 1.0 - self.rate, flat.shape)
        return jnp.where(kept, flat / (1.0 - self.rate), jnp.zeros_like(flat)).reshape(x.shape)


def _bernoulli(rng: jax.Array, probability: float, shape: tuple[int, ...]) -> jax.Array:
    """`jax.random.bernoulli`; where a mesh divides the rows, of each share by a key of its own.

    XLA divides the drawing of threefry's bits, but no other generator's: each device would draw
    those of all rows.
    """
    if str(jax.random.key_impl(rng)) == "threefry2x32" and math.prod(shape) < _COUNTS:
        return _uniform(threefry_bits(rng, shape)) < probability
    shards = row_shards()
    if shards == 1:
        return jax.random.bernoulli(rng, probability, shape)

    def of_share(rng: jax.Array) -> jax.Array:
        own = jax.random.fold_in(rng, jax.lax.axis_index(RULES["rows"]))
        return jax.random.bernoulli(own, probability, (shape[0] // shards, *shape[1:]))

    rows = PartitionSpec(RULES["rows"])
    return jax.shard_map(of_share, in_specs=PartitionSpec(), out_specs=rows)(rng)


def threefry_bits(rng: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """`jax.random.bits` of a threefry2x32 key, uint32, fewer than 2^32 of them.

    Threefry-2x32-20 of Salmon et al. 2011, section 3.2, as jax counts. On a CPU jax runs its rounds
    in a loop that writes all bits down and reads them again, five times: written out they are one
    pass, in half to a third of the time.
    """
    first, second = jax.random.key_data(rng)
    keys = first, second, first ^ second ^ jnp.uint32(_PARITY)
    x, y = jnp.full(shape, keys[0]), _places(shape) + keys[1]
    for group in range(1, 6):
        for bits in _ROTATIONS[(group - 1) % 2]:
            x = x + y
            y = x ^ ((y << bits) | (y >> (32 - bits)))
        x, y = x + keys[group % 3], y + keys[(group + 1) % 3] + jnp.uint32(group)
    return x ^ y


def _places(shape: tuple[int, ...]) -> jax.Array:
    """The number of each value, row by row, uint32; axis by axis, so that XLA can divide it."""
    places = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = jnp.uint32(math.prod(shape[axis + 1 :]))
        places += stride * jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    return places


def _uniform(bits: jax.Array) -> jax.Array:
    """As `jax.random.uniform` makes float32 in [0, 1) of them."""
    one = jnp.uint32(0x3F800000)
    return jax.lax.bitcast_convert_type((bits >> 9) | one, jnp.float32) - 1.0
