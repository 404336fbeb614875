"""Which sentences the rows of a search work on: a row whose sentence is done takes the next one.

Outputs differ in length, and a search ends by a bound on scores: of a batch that waits for its last
sentence, most rows idle most of the time.

Letters: B rows, Q sentences in the queue, P pairs, W ways, G beams, K hypotheses a beam, T steps.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from bidi.search import hypotheses as hyps

OVER = -1


@flax.struct.dataclass
class Rows:
    """What each row works on.

    Attributes:
        sentence_B: int32, place in the queue.
        step_B: int32, tokens that every alive hypothesis of the row has.
        idle_B: bool, whether there was no sentence left: what the row does then counts for nothing.
        alive: see `hyps.Alive`.
        finished: see `hyps.Finished`.
        origins_BPWT: int32, the pair in whose place each step of a stream was written; OVER where
            the stream had ended.
    """

    sentence_B: jax.Array
    step_B: jax.Array
    idle_B: jax.Array
    alive: hyps.Alive
    finished: hyps.Finished
    origins_BPWT: jax.Array


@flax.struct.dataclass
class Outcomes:
    """The beams of each sentence, once it is done; and its steps [Q]."""

    alive: hyps.Alive
    finished: hyps.Finished
    steps_Q: jax.Array


def fresh_rows(pairs: int, beams: tuple[hyps.Alive, hyps.Finished]) -> Rows:
    """The first sentences of the queue, nothing written: the beams are `hyps.empty_beams`."""
    alive, finished = beams
    rows, ways, _, steps = alive.tokens_BWKT.shape
    return Rows(
        sentence_B=jnp.arange(rows, dtype=jnp.int32),
        step_B=jnp.zeros(rows, jnp.int32),
        idle_B=jnp.zeros(rows, bool),
        alive=alive,
        finished=finished,
        origins_BPWT=own_places((rows, pairs, ways, steps)),
    )


def own_places(shape_BPWT: tuple[int, ...]) -> jax.Array:
    """Origins of streams that were written where they are."""
    return jax.lax.broadcasted_iota(jnp.int32, shape_BPWT, dimension=1)


def follow(origins_BPWT: jax.Array, parents_BPW: jax.Array, step_B: jax.Array) -> jax.Array:
    """Each stream of each new pair comes from where its parent came from, up to this step."""
    ways_W = jnp.arange(parents_BPW.shape[-1])
    of_parents = jax.vmap(lambda origins_PWT, parents_PW: origins_PWT[parents_PW, ways_W])
    written_BT = jnp.arange(origins_BPWT.shape[-1])[None] <= step_B[:, None]
    return jnp.where(
        written_BT[:, None, None],
        of_parents(origins_BPWT, parents_BPW),
        own_places(origins_BPWT.shape),
    )


def end_streams(origins_BPWT: jax.Array, ended_BPW: jax.Array, step_B: jax.Array) -> jax.Array:
    """Nobody reads what streams that have ended write at the step after this one."""
    next_BT = jnp.arange(origins_BPWT.shape[-1])[None] == step_B[:, None] + 1
    return jnp.where(next_BT[:, None, None] & ended_BPW[..., None], OVER, origins_BPWT)


def move_on(
    rows: Rows, outcomes: Outcomes, next_sentence: jax.Array, done_B: jax.Array
) -> tuple[Rows, Outcomes, jax.Array]:
    """Rows that are done lay down their beams and take the next sentences, while there are any.

    Args:
        rows: after a step.
        outcomes: of the sentences that were done before.
        next_sentence: int32, the first one that no row has taken.
        done_B: bool, false for idle rows.
    """
    sentences = outcomes.steps_Q.shape[0]
    # A place beyond the last one: such rows lay nothing down.
    place_B = jnp.where(done_B, rows.sentence_B, sentences)
    outcomes = jax.tree.map(
        lambda room, value: room.at[place_B].set(value, mode="drop"),
        outcomes,
        Outcomes(rows.alive, rows.finished, rows.step_B),
    )
    taken_B = next_sentence + jnp.cumsum(done_B) - 1
    takes_B = done_B & (taken_B < sentences)
    batch, ways, hypotheses, steps = rows.alive.tokens_BWKT.shape
    beams = rows.alive.log_probs_BGK.shape[1]
    empty = hyps.empty_beams(batch, ways, hypotheses, steps, beams)
    fresh = fresh_rows(rows.origins_BPWT.shape[1], empty)
    fresh = dataclasses.replace(fresh, sentence_B=taken_B)
    rows = dataclasses.replace(rows, idle_B=rows.idle_B | (done_B & ~takes_B))
    rows = jax.tree.map(
        lambda old, new: jnp.where(takes_B.reshape(-1, *(1,) * (old.ndim - 1)), new, old),
        rows,
        fresh,
    )
    return rows, outcomes, next_sentence + takes_B.sum()
