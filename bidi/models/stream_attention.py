"""How streams read themselves and each other, and what they have to know for it.

Letters: B batch, P pairs, K streams of each way (see `Pairing`), W ways, G decoders (1 shared, or W
own ones), R ways of one (W / G), S source steps, T target steps, H heads, D model.
"""

import dataclasses

import jax
import jax.numpy as jnp

from bidi.models.attention import (
    Attend,
    attend,
    attend_both,
    attend_other,
    attend_step,
    merge_heads,
    split_heads,
)
from bidi.models.cache import steps_as_streams, streams_as_steps, write
from bidi.models.model import Cache
from bidi.models.pairing import Pairing


@dataclasses.dataclass(frozen=True)
class Call:
    """What all layers share in one call of the decoder.

    Attributes:
        own_mask: what a stream sees of itself, `attention.history_mask`; with a cache the first of
            `cached_masks`.
        other_mask: for each way's keys, what the other's queries see, `attention.future_mask` or
            the second of `cached_masks`; None where the streams do not read each other.
        source_mask: bool, broadcastable to [B, G, H, P * R * T, S].
        train: whether dropout is on.
        pairing: where streams have not read each other before, which ones stand in which pairs.
        slot_BKW: int32, where in the cache streams write; None without one.
        own_source_mask: where of pair w only the stream of way w is wanted, `source_mask` of these
            streams: once streams have read each other for the last time, only these go on, see
            `own_streams`. None: all do.
    """

    own_mask: jax.Array
    other_mask: jax.Array | None
    source_mask: jax.Array
    train: bool
    pairing: Pairing
    slot_BKW: jax.Array | None = None
    own_source_mask: jax.Array | None = None

    @property
    def by(self) -> Attend:
        """How keys are read."""
        return _by(self.slot_BKW)

    def alone(self) -> "Call":
        """The same for streams, not pairs, that do not read each other."""
        return dataclasses.replace(self, other_mask=None, pairing=Pairing(None))


def _by(slot_BKW: jax.Array | None) -> Attend:
    return attend if slot_BKW is None else attend_step


def own_streams(x_BPWT: jax.Array) -> jax.Array:
    """Of pair w the stream of way w: [B, W, W, T, ...] -> [B, 1, W, T, ...]."""
    ways = range(x_BPWT.shape[2])
    return jnp.stack([x_BPWT[:, way, way] for way in ways], axis=1)[:, None]


def read_streams(
    qkv: list[jax.Array], heads: int, cache: Cache | None, call: Call
) -> tuple[jax.Array, jax.Array, Cache | None]:
    """What each stream reads of itself and of the other, both [B, P, W, T, D], and the cache.

    The second is zero where the streams do not read each other. `qkv` are [B, K, W, T, D]; with a
    cache T is 1, and what was written at former steps is read with it.
    """
    q, other_q, k, v, cache = _queries_keys_values(qkv, heads, cache, call.slot_BKW, call.pairing)
    if call.other_mask is None:
        history, future = call.by(q, k, v, call.own_mask), jnp.zeros_like(other_q)
    else:
        history, future = attend_both(q, other_q, k, v, call.own_mask, call.other_mask, call.by)
    if cache is not None:
        history, future = call.pairing.pairs(steps_as_streams(history)), steps_as_streams(future)
    return merge_heads(history), merge_heads(future), cache


def read_others(
    qkv: list[jax.Array],
    heads: int,
    cache: Cache | None,
    other_mask: jax.Array | None,
    slot_BKW: jax.Array | None,
    pairing: Pairing,
) -> tuple[jax.Array, Cache | None]:
    """The second and the third of `read_streams`; the last three arguments: see `Call`."""
    _, other_q, k, v, cache = _queries_keys_values(qkv, heads, cache, slot_BKW, pairing)
    if other_mask is None:
        future = jnp.zeros_like(other_q)
    else:
        future = attend_other(other_q, k, v, other_mask, _by(slot_BKW))
    return merge_heads(future if cache is None else steps_as_streams(future)), cache


def _queries_keys_values(
    qkv: list[jax.Array],
    heads: int,
    cache: Cache | None,
    slot_BKW: jax.Array | None,
    pairing: Pairing,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, Cache | None]:
    """Queries for a stream's own keys, queries for the other's, keys, values; and the cache."""
    q, k, v = (split_heads(part, heads) for part in qkv)
    if cache is None or slot_BKW is None:
        return q, q, k, v, None
    cache = write(cache, k, v, slot_BKW)
    own_q, other_q = streams_as_steps(q), streams_as_steps(pairing.pairs(q))
    return own_q, other_q, cache["keys"], cache["values"], cache
