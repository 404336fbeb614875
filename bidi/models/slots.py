"""Where in a cache streams stand: what a search tells a model.

What streams write in slots stays where it is; a slot is free again once no stream reads it. Streams
of one beam have most of what they wrote in common, so that a cache needs little more room than one
stream.

Letters: B batch, K streams of each way, W ways, M slots.
"""

import dataclasses

import flax.struct
import jax


@dataclasses.dataclass(frozen=True)
class Room:
    """Slots that a cache has for each way.

    Attributes:
        pairs: where every pair has streams of its own; 0 if nothing is kept of such.
        streams: where what streams write does not depend on their partners, see `Pairing`.
    """

    pairs: int
    streams: int


@flax.struct.dataclass
class Slots:
    """Where streams write a step, and what each of them reads.

    Attributes:
        slot_BKW: int32, where each stream writes.
        seen_BKWM: bool, what it has written itself, this step included; but nobody reads this step
            of a stream that has ended.
        parents_BKW: int32, the stream whose last step each one goes on from.
    """

    slot_BKW: jax.Array
    seen_BKWM: jax.Array
    parents_BKW: jax.Array


@flax.struct.dataclass
class Place:
    """Where the rows of a search stand.

    Attributes:
        sentence_B: int32, the sentence that each row works on, a place in the queue.
        step_B: int32, tokens written before.
        pairs: where the streams of pairs write in the cache, and read; `streams`, if it keeps
            nothing of pairs.
        streams: the same of the streams whose combinations the pairs are, see `Pairing`; else
            `pairs`.
    """

    sentence_B: jax.Array
    step_B: jax.Array
    pairs: Slots
    streams: Slots
