"""Which sentences the rows of a search work on: a row whose sentence is done takes the next one.

Outputs differ in length, and a search ends by a bound on scores: of a batch that waits for its last
sentence, most rows idle most of the time.

Letters: B rows, Q sentences in the queue, W ways, G beams, K hypotheses a beam, T steps.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from bidi.models.slots import Slots
from bidi.search import hypotheses as hyps
from bidi.search.slots import Held, first_slots


@flax.struct.dataclass
class Rows:
    """What each row works on.

    Attributes:
        sentence_B: int32, place in the queue.
        step_B: int32, tokens that every alive hypothesis of the row has.
        idle_B: bool, whether there was no sentence left: what the row does then counts for nothing.
        alive: see `hyps.Alive`.
        finished: see `hyps.Finished`.
        held: see `slots.Held`.
    """

    sentence_B: jax.Array
    step_B: jax.Array
    idle_B: jax.Array
    alive: hyps.Alive
    finished: hyps.Finished
    held: Held


@flax.struct.dataclass
class Outcomes:
    """The beams of each sentence, once it is done or lost.

    Attributes:
        alive: see `hyps.Alive`.
        finished: see `hyps.Finished`.
        steps_Q: int32, steps that it took.
        lost_Q: bool, whether it was given up, since its row had too few slots.
    """

    alive: hyps.Alive
    finished: hyps.Finished
    steps_Q: jax.Array
    lost_Q: jax.Array


def fresh_rows(beams: tuple[hyps.Alive, hyps.Finished], held: Held) -> Rows:
    """The first sentences of the queue, nothing written: the beams are `hyps.empty_beams`."""
    alive, finished = beams
    rows = len(alive.tokens_BWKT)
    return Rows(
        sentence_B=jnp.arange(rows, dtype=jnp.int32),
        step_B=jnp.zeros(rows, jnp.int32),
        idle_B=jnp.zeros(rows, bool),
        alive=alive,
        finished=finished,
        held=held,
    )


def move_on(
    rows: Rows,
    outcomes: Outcomes,
    next_sentence: jax.Array,
    done_B: jax.Array,
    lost_B: jax.Array,
) -> tuple[Rows, Outcomes, jax.Array]:
    """Rows that are done lay down their beams and take the next sentences, while there are any.

    Args:
        rows: after a step.
        outcomes: of the sentences that were done before.
        next_sentence: int32, the first one that no row has taken.
        done_B: bool, false for idle rows.
        lost_B: bool, which of them have given up.
    """
    sentences = outcomes.steps_Q.shape[0]
    # A place beyond the last one: such rows lay nothing down.
    place_B = jnp.where(done_B, rows.sentence_B, sentences)
    outcomes = jax.tree.map(
        lambda room, value: room.at[place_B].set(value, mode="drop"),
        outcomes,
        Outcomes(rows.alive, rows.finished, rows.step_B, lost_B),
    )
    taken_B = next_sentence + jnp.cumsum(done_B) - 1
    takes_B = done_B & (taken_B < sentences)
    batch, ways, hypotheses, steps = rows.alive.tokens_BWKT.shape
    beams = rows.alive.log_probs_BGK.shape[1]
    fresh = fresh_rows(
        hyps.empty_beams(batch, ways, hypotheses, steps, beams),
        jax.tree.map(
            lambda slots: first_slots(*slots.seen_BKWM.shape),
            rows.held,
            is_leaf=lambda node: isinstance(node, Slots),
        ),
    )
    fresh = dataclasses.replace(fresh, sentence_B=taken_B)
    rows = dataclasses.replace(rows, idle_B=rows.idle_B | (done_B & ~takes_B))
    rows = jax.tree.map(
        lambda old, new: jnp.where(takes_B.reshape(-1, *(1,) * (old.ndim - 1)), new, old),
        rows,
        fresh,
    )
    return rows, outcomes, next_sentence + takes_B.sum()
