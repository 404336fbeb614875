"""Random log-probabilities as a function of whole prefixes: for the oracle, and as a decode step.

A prefix is hashed in 32-bit integers, so both have the same numbers exactly. The decode step keeps
in its cache what was written in each slot, as a model keeps keys and values, and puts the prefixes
together by the slots that streams read: a search that loses track of them reads other numbers.

B rows, Q sentences in the queue, P pairs, K streams of each way, W ways, M slots, T steps,
V vocabulary.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from bidi.models.pairing import Pairing
from bidi.models.prices import Prices
from bidi.models.slots import Room

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


def cache(
    sentences: list[Sentence], rows: int, ways: int, room: Room, steps: int, garbage: int = 0
) -> dict:
    """The cache of `decode_step`: what is written, garbage at first; and the sentences' tables [Q].

    `garbage`: a seed. No token of any table is in it.
    """
    tables_Q = {
        name: np.array([getattr(s, name) for s in sentences], np.uint32)
        for name in ("seed", "levels", "end_cost")
    }
    rng = np.random.default_rng(garbage)

    def written(slots):
        shape_BWM = (rows, ways, slots)
        return {
            "tokens": rng.integers(99, 9999, shape_BWM, np.int32),
            "steps": rng.integers(0, steps, shape_BWM, np.int32),
        }

    return tables_Q | {"pairs": written(room.pairs), "streams": written(room.streams)}


def _mix_array(x):
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _write(written, tokens_BKW, slots, step_B):
    index = np.ix_(*map(range, tokens_BKW.shape))
    place = index[0], index[2], slots.slot_BKW
    return {
        "tokens": written["tokens"].at[place].set(tokens_BKW),
        "steps": written["steps"].at[place].set(step_B[:, None, None]),
    }


def _hashes(written, slots, steps):
    """Of what each stream has written, in the order of its steps, [B, K, W]."""
    tokens_BKWM, steps_BKWM = (written[name][:, None] for name in ("tokens", "steps"))
    hash_BKW = jnp.zeros(slots.slot_BKW.shape, jnp.uint32)
    for t in range(steps):
        written_BKWM = slots.seen_BKWM & (steps_BKWM == t)
        token_BKW = jnp.where(written_BKWM, tokens_BKWM, 0).sum(axis=-1)
        longer_BKW = _mix_array(hash_BKW + token_BKW.astype(jnp.uint32) + jnp.uint32(GOLDEN))
        hash_BKW = jnp.where(written_BKWM.any(axis=-1), longer_BKW, hash_BKW)
    return hash_BKW


def decode_step(
    end: tuple[int, ...], size: int, steps: int, *, combined: int | None, partners: bool
):
    """The same table as a decode step; `partners`: whether it reads the other way's prefix."""

    def step_fn(cache, tokens_BPW, place):
        seed_B11, levels_B11, end_cost_B11 = (
            cache[name][place.sentence_B][:, None, None] for name in ("seed", "levels", "end_cost")
        )
        pairing, step_B = Pairing(combined), place.step_B
        pairs = _write(cache["pairs"], tokens_BPW, place.pairs, step_B)
        tokens_BKW = pairing.streams(tokens_BPW)
        streams = _write(cache["streams"], tokens_BKW, place.streams, step_B)
        hash_BPW = _hashes(pairs, place.pairs, steps)
        of_streams_BPW = pairing.pairs(_hashes(streams, place.streams, steps))
        # Pairs and streams tell the same of what was written.
        hash_BPW = jnp.where(hash_BPW == of_streams_BPW, hash_BPW, 0)
        way_BPW = jnp.broadcast_to(
            jnp.arange(len(end), dtype=jnp.uint32)[None, None], tokens_BPW.shape
        )
        row_BPW = _mix_array(seed_B11 + way_BPW) ^ hash_BPW
        if partners:
            row_BPW ^= _mix_array(jnp.flip(hash_BPW, -1) + jnp.uint32(GOLDEN))
        token_V = jnp.arange(size, dtype=jnp.uint32)
        bits_BPWV = _mix_array(
            row_BPW[..., None] + (token_V * jnp.uint32(GOLDEN))[None, None, None]
        )
        levels_B111 = levels_B11[..., None]
        coarse_BPWV = (bits_BPWV % jnp.maximum(levels_B111, 1)).astype(jnp.float32) / 8
        fine_BPWV = (bits_BPWV >> 8).astype(jnp.float32) / 2**22
        cost_BPWV = jnp.where(levels_B111 == 0, fine_BPWV, coarse_BPWV)
        ends_WV = jnp.array(end, jnp.uint32)[:, None] == token_V[None]
        end_cost_B1WV = jnp.where(
            ends_WV[None, None], end_cost_B11[..., None].astype(jnp.float32) / 8, 0
        )
        # In parts, whose sums and differences are exact where there are levels.
        parts_BPW = [
            jnp.where(levels_B11 == 0, 0, number_BPW % 8).astype(jnp.float32) / 8
            for number_BPW in (row_BPW, tokens_BPW)
        ]
        logits_BPWV = sum(parts_BPW)[..., None] - (cost_BPWV + end_cost_B1WV)
        return Prices(logits_BPWV, *parts_BPW), cache | {"pairs": pairs, "streams": streams}

    return step_fn
