"""What streams have written at former steps, and who reads what of it.

Letters: B batch, P pairs, K streams of each way (see `Pairing`), W ways, M slots (see `Slots`),
H heads, E head width.
"""

import jax
import jax.numpy as jnp

from bidi.models.model import Cache
from bidi.models.pairing import Pairing
from bidi.models.slots import Slots

KeysValues = tuple[jax.Array, jax.Array]


def empty_keys_values(
    batch: int, ways: int, slots: int, heads: int, width: int, dtype: jnp.dtype
) -> Cache:
    """Room for so many steps: keys and values, both [B, W, H, M, E].

    With keys transposed, the entries of a step would lie far from one another when it is written.
    """
    nothing = jnp.zeros((batch, ways, heads, slots, width), dtype)
    return {"keys": nothing, "values": nothing}


def write(cache: Cache, k_BKWH1E: jax.Array, v_BKWH1E: jax.Array, slot_BKW: jax.Array) -> Cache:
    """The cache of `empty_keys_values` with a step of each stream in its slot."""
    batch, _, ways = slot_BKW.shape
    row_B11, way_W = jnp.arange(batch)[:, None, None], jnp.arange(ways)[None, None]

    def written(kept_BWHME: jax.Array, step_BKWH1E: jax.Array) -> jax.Array:
        # No two streams share a slot, but in idle rows, which nobody reads.
        slots = kept_BWHME.at[row_B11, way_W, :, slot_BKW]
        return slots.set(step_BKWH1E[..., 0, :], unique_indices=True)

    return {
        "keys": written(cache["keys"], k_BKWH1E),
        "values": written(cache["values"], v_BKWH1E),
    }


def streams_as_steps(q_BKWH1E: jax.Array) -> jax.Array:
    """The streams of a sentence as queries of one product, [B, W, H, K, E]: they read one cache."""
    return q_BKWH1E[..., 0, :].transpose(0, 2, 3, 1, 4)


def steps_as_streams(read_BWHKE: jax.Array) -> jax.Array:
    """Undoes `streams_as_steps`: [B, K, W, H, 1, E]."""
    return read_BWHKE.transpose(0, 3, 1, 2, 4)[..., None, :]


def cached_masks(slots: Slots, pairing: Pairing) -> tuple[jax.Array, jax.Array]:
    """Who sees what in the cache of each way: its own streams, and the other's, in their pairs.

    bool [B, W, 1, K, M] and [B, W, 1, P, M]. The other stream of a pair sees the same as the one
    that wrote it.
    """
    own_BKW1M = slots.seen_BKWM[:, :, :, None]
    other_BPW1M = pairing.pairs(own_BKW1M)
    return own_BKW1M.transpose(0, 2, 3, 1, 4), other_BPW1M.transpose(0, 2, 3, 1, 4)
