"""What streams have written at former steps, and who reads what of it.

Letters: B batch, P pairs, K streams of each way (see `Pairing`), W ways, S cached steps, T target
steps, H heads, E head width.
"""

import functools

import jax
import jax.numpy as jnp

from bidi.models.model import Cache
from bidi.models.pairing import Pairing

KeysValues = tuple[jax.Array, jax.Array]


def empty_keys_values(
    batch: int, ways: int, pairs: int, steps: int, heads: int, width: int, dtype: jnp.dtype
) -> Cache:
    """Room for so many steps of every pair: keys [B, W, H, E, T, P], values [B, W, H, T, P, E].

    Both lie as their products read them: with keys in the order of values, XLA on a CPU would turn
    all of them round in every step.
    """
    keys = jnp.zeros((batch, ways, heads, width, steps, pairs), dtype)
    return {"keys": keys, "values": jnp.moveaxis(keys, 3, 5)}


def write(cache: Cache, k_BPWHE1: jax.Array, v_BPWH1E: jax.Array, step_B: jax.Array) -> Cache:
    """The cache of `empty_keys_values` with a step of each row in it."""
    k_BWHE1P, v_BWH1PE = k_BPWHE1.transpose(0, 2, 3, 4, 5, 1), v_BPWH1E.transpose(0, 2, 3, 4, 1, 5)
    return {
        "keys": _write(cache["keys"], k_BWHE1P, step_B, axis=3),
        "values": _write(cache["values"], v_BWH1PE, step_B, axis=2),
    }


def keys_values_of(cache: Cache) -> KeysValues:
    """All that is in the cache: keys [B, W, H, E, T * P] and values [B, W, H, T * P, E]."""
    return _flat(cache["keys"], 4), _flat(cache["values"], 3)


def pairs_as_steps(q_BPWH1E: jax.Array) -> jax.Array:
    """The pairs of a sentence as queries of one product, [B, W, H, P, E]: they read one cache."""
    return q_BPWH1E[..., 0, :].transpose(0, 2, 3, 1, 4)


def steps_as_pairs(read_BWHPE: jax.Array) -> jax.Array:
    """Undoes `pairs_as_steps`: [B, P, W, H, 1, E]."""
    return read_BWHPE.transpose(0, 3, 1, 2, 4)[..., None, :]


def _write(room: jax.Array, new: jax.Array, step_B: jax.Array, axis: int) -> jax.Array:
    """Lays a step of each row where the row stands; `axis` of T in a row.

    This is a scatter, even if all rows stand at one step. Of a slice update at a common step XLA on
    a CPU makes two, one for the loop and one for the product, and copies the whole cache for each.
    """
    return jax.vmap(functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=axis))(
        room, new, step_B
    )


def _flat(x: jax.Array, axis: int) -> jax.Array:
    """An axis and the next one as one."""
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def cached_masks(
    origins_BPWT: jax.Array, step_B: jax.Array, pairing: Pairing
) -> tuple[jax.Array, jax.Array]:
    """Who sees what in the cache of each way: its own streams, and the other's, in their pairs.

    bool [B, W, 1, K, T * K] and [B, W, 1, P, T * K]. Of the streams that wrote at a step up to
    `step_B`, a stream sees the one that it comes from; the other one of its pair sees the same.
    """
    origins_BKWT = pairing.origins(origins_BPWT)
    _, streams, _, steps = origins_BKWT.shape
    seen_BT = jnp.arange(steps)[None] <= step_B[:, None]
    came_from_BKWTK = origins_BKWT[..., None] == jnp.arange(streams)[None, None, None, None]
    seen_BKWTK = came_from_BKWTK & seen_BT[:, None, None, :, None]
    seen_BKW1S = seen_BKWTK.reshape(*seen_BKWTK.shape[:3], 1, -1)
    own, other = seen_BKW1S, pairing.pairs(seen_BKW1S)
    return own.transpose(0, 2, 3, 1, 4), other.transpose(0, 2, 3, 1, 4)
