"""Random log-probabilities as a function of whole prefixes: for the oracle, and as a decode step.

A prefix is hashed in 32-bit integers, so both have the same numbers exactly. The decode step keeps
the prefixes in its cache, as a model keeps keys and values: a search that reorders the cache
wrongly reads other numbers.

B batch, P pairs, W ways, T steps, V vocabulary.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

MASK = 0xFFFFFFFF
GOLDEN = 0x9E3779B9


@dataclasses.dataclass(frozen=True)
class Sentence:
    """One sentence's table.

    Log-probabilities are multiples of 1/8: -(hash mod `levels`) / 8, less `end_cost` / 8 for the
    end marker. Few levels make ties. `levels` 0: 24 random bits between 0 and -4 instead.
    """

    seed: int
    levels: int
    end_cost: int
    max_length: int


def _mix(x):
    """The finaliser of MurmurHash3, for Python integers."""
    x &= MASK
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & MASK
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & MASK
    return x ^ (x >> 16)


def log_probs(sentence: Sentence, start: tuple[int, ...], end: tuple[int, ...], size: int):
    """The table as the oracle reads it."""

    def hashed(way, tokens):
        h = 0
        for token in (start[way], *tokens):
            h = _mix(h + token + GOLDEN)
        return h

    def row(way, own, partner):
        h = _mix(sentence.seed + way) ^ hashed(way, own)
        if partner is not None:
            h ^= _mix(hashed(1 - way, partner) + GOLDEN)
        values = []
        for token in range(size):
            bits = _mix(h + token * GOLDEN)
            value = -(bits % sentence.levels) / 8 if sentence.levels else -(bits >> 8) / 2**22
            values.append(value - (sentence.end_cost / 8 if token == end[way] else 0))
        return values

    return row


def cache(sentences: list[Sentence], pairs: int, ways: int, steps: int) -> dict:
    """The cache of `decode_step`: every leaf leads with [B, P, W]."""

    def leaf(name):
        values = np.array([getattr(s, name) for s in sentences], np.uint32)
        return np.ascontiguousarray(
            np.broadcast_to(values[:, None, None], (len(values), pairs, ways))
        )

    prefixes = np.full((len(sentences), pairs, ways, steps), 99, np.int32)
    return {"prefixes": prefixes} | {name: leaf(name) for name in ("seed", "levels", "end_cost")}


def _mix_array(x):
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def decode_step(end: tuple[int, ...], size: int, *, partners: bool):
    """The same table as a decode step; `partners`: whether it reads the other way's prefix."""

    def step_fn(cache, tokens_BPW, step):
        prefixes_BPWT = cache["prefixes"].at[..., step].set(tokens_BPW)
        hash_BPW = jnp.zeros(tokens_BPW.shape, jnp.uint32)
        for t in range(prefixes_BPWT.shape[-1]):
            longer_BPW = _mix_array(
                hash_BPW + prefixes_BPWT[..., t].astype(jnp.uint32) + jnp.uint32(GOLDEN)
            )
            hash_BPW = jnp.where(t <= step, longer_BPW, hash_BPW)
        way_BPW = jnp.broadcast_to(
            jnp.arange(len(end), dtype=jnp.uint32)[None, None], tokens_BPW.shape
        )
        row_BPW = _mix_array(cache["seed"] + way_BPW) ^ hash_BPW
        if partners:
            row_BPW ^= _mix_array(jnp.flip(hash_BPW, -1) + jnp.uint32(GOLDEN))
        token_V = jnp.arange(size, dtype=jnp.uint32)
        bits_BPWV = _mix_array(
            row_BPW[..., None] + (token_V * jnp.uint32(GOLDEN))[None, None, None]
        )
        levels_BPW1 = cache["levels"][..., None]
        coarse_BPWV = (bits_BPWV % jnp.maximum(levels_BPW1, 1)).astype(jnp.float32) / 8
        fine_BPWV = (bits_BPWV >> 8).astype(jnp.float32) / 2**22
        cost_BPWV = jnp.where(levels_BPW1 == 0, fine_BPWV, coarse_BPWV)
        ends_WV = jnp.array(end, jnp.uint32)[:, None] == token_V[None]
        end_cost_BPWV = jnp.where(
            ends_WV[None, None], cache["end_cost"][..., None].astype(jnp.float32) / 8, 0
        )
        return -(cost_BPWV + end_cost_BPWV), cache | {"prefixes": prefixes_BPWT}

    return step_fn
