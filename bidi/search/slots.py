"""Slots of a cache: streams take free ones for each step, and keep in mind which ones they read.

Letters: B rows, K streams of each way, W ways, M slots, T steps.
"""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from bidi.models.slots import Room, Slots
from bidi.search.coupling import Coupling

_ALIGNED = 8


def whole_room(coupling: Coupling, steps: int, keeps_pairs: bool) -> Room:
    """Room for all that streams can write in so many steps; `keeps_pairs`: see `Model`."""
    return _room(coupling, lambda streams: steps * streams, keeps_pairs)


def likely_room(coupling: Coupling, steps: int, keeps_pairs: bool) -> Room:
    """Room that suffices for nearly all searches of so many steps; `keeps_pairs`: see `Model`.

    All that is alive in a beam comes, a few steps before, from one hypothesis.
    """

    def slots_of(streams: int) -> int:
        return min(steps + 4 * (streams - 1), steps * streams)

    return _room(coupling, slots_of, keeps_pairs)


def _room(coupling: Coupling, slots_of: Callable[[int], int], keeps_pairs: bool) -> Room:
    """Multiples of eight, as a GPU's matrix units ask of bfloat16; a CPU is as fast without."""
    pairs, streams = (
        -(-slots_of(number) // _ALIGNED) * _ALIGNED
        for number in (coupling.pairs, coupling.combined or coupling.pairs)
    )
    return Room(pairs if keeps_pairs or coupling.combined is None else 0, streams)


@flax.struct.dataclass
class Held:
    """The slots of a cache that the rows of a search hold.

    Attributes:
        pairs: of the streams of pairs; None if the cache keeps nothing of such.
        streams: of the streams whose combinations the pairs are; None if they are none.
    """

    pairs: Slots | None
    streams: Slots | None

    @property
    def both(self) -> tuple[Slots, Slots]:
        """Of pairs and of streams; where there is but one, it is that of either."""
        pairs, streams = self.pairs or self.streams, self.streams or self.pairs
        assert pairs is not None
        assert streams is not None
        return pairs, streams


def first_held(rows: int, ways: int, coupling: Coupling, room: Room) -> Held:
    """Of rows that have written nothing."""
    pairs = streams = None
    if room.pairs:
        pairs = first_slots(rows, coupling.pairs, ways, room.pairs)
    if coupling.combined is not None:
        streams = first_slots(rows, coupling.combined, ways, room.streams)
    return Held(pairs, streams)


def first_slots(batch: int, streams: int, ways: int, slots: int) -> Slots:
    """Of streams that have written nothing."""
    nothing_BKWM = jnp.zeros((batch, streams, ways, slots), bool)
    parents_BKW = jnp.zeros(nothing_BKWM.shape[:3], jnp.int32)
    return _take(nothing_BKWM, parents_BKW, jnp.zeros_like(parents_BKW, bool))[0]


def follow(slots: Slots, parents_BKW: jax.Array, ended_BKW: jax.Array) -> tuple[Slots, jax.Array]:
    """The slots of the next step, for streams that go on from these parents.

    Args:
        slots: of the step before.
        parents_BKW: int32.
        ended_BKW: bool, whether a stream is at its end: nobody reads what it still writes.

    Returns:
        The slots, and where there were too few of them, bool [B]: such a row is lost.
    """
    of_parents_BKWM = jnp.take_along_axis(slots.seen_BKWM, parents_BKW[..., None], axis=1)
    return _take(of_parents_BKWM, parents_BKW, ended_BKW)


def _take(
    seen_BKWM: jax.Array, parents_BKW: jax.Array, ended_BKW: jax.Array
) -> tuple[Slots, jax.Array]:
    """Gives the k-th stream the k-th slot that no stream of its way reads."""
    streams = seen_BKWM.shape[1]
    free_BWM = ~seen_BKWM.any(axis=1)
    number_BWM = jnp.cumsum(free_BWM, axis=-1)
    number_K111 = jnp.arange(1, streams + 1)[:, None, None]
    taken_BKWM = free_BWM[:, None] & (number_BWM[:, None] == number_K111[None])
    slots = Slots(
        slot_BKW=jnp.argmax(taken_BKWM, axis=-1).astype(jnp.int32),
        seen_BKWM=seen_BKWM | (taken_BKWM & ~ended_BKW[..., None]),
        parents_BKW=parents_BKW,
    )
    return slots, (number_BWM[..., -1] < streams).any(axis=-1)
