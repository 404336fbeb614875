"""The beams of a search: alive hypotheses, finished ones, and their n-best list.

Letters: B batch, W ways, K hypotheses a direction, C candidates, N n-best, T steps, V vocabulary.
Everywhere the best comes first; a dead or absent hypothesis has a log-probability of -inf.
"""

import flax.struct
import jax
import jax.numpy as jnp

from bidi.search.scoring import Penalty, length_penalty
from bidi.search.top_k import top_k

PAD = 0  # behind the end of an output; never a token


@flax.struct.dataclass
class Alive:
    """Hypotheses that may grow, best first.

    Attributes:
        tokens_BWKT: int32, what was written, in the order of writing.
        log_probs_BWK: float32, -inf where there is no such hypothesis.
    """

    tokens_BWKT: jax.Array
    log_probs_BWK: jax.Array


@flax.struct.dataclass
class Finished:
    """The best hypotheses that have ended, best score first; they never change.

    Attributes:
        tokens_BWKT: int32, without the end marker.
        log_probs_BWK: float32, the end marker included; -inf where there is no such hypothesis.
        scores_BWK: float32, log-probability over length penalty.
        lengths_BWK: int32, predictions made: tokens and the end marker.
    """

    tokens_BWKT: jax.Array
    log_probs_BWK: jax.Array
    scores_BWK: jax.Array
    lengths_BWK: jax.Array


@flax.struct.dataclass
class Candidates:
    """The best extensions of the alive hypotheses, best first.

    Attributes:
        log_probs_BWC: float32.
        parents_BWC: int32, rank of the hypothesis extended.
        tokens_BWC: int32, the token it is extended by.
    """

    log_probs_BWC: jax.Array
    parents_BWC: jax.Array
    tokens_BWC: jax.Array


def empty_beams(batch: int, ways: int, hypotheses: int, steps: int) -> tuple[Alive, Finished]:
    """One empty alive hypothesis in each direction, none finished."""
    tokens_BWKT = jnp.full((batch, ways, hypotheses, steps), PAD, jnp.int32)
    nothing_BWK = jnp.full((batch, ways, hypotheses), -jnp.inf)
    lengths_BWK = jnp.zeros((batch, ways, hypotheses), jnp.int32)
    alive = Alive(tokens_BWKT, nothing_BWK.at[..., 0].set(0.0))
    return alive, Finished(tokens_BWKT, nothing_BWK, nothing_BWK, lengths_BWK)


def best_candidates(alive: Alive, extensions_BWKV: jax.Array, allowed_BWV: jax.Array) -> Candidates:
    """The 2K best extensions: enough, as at most K of them end.

    Ties go to the hypothesis that ranks higher, then to the smaller token id.
    """
    batch, ways, hypotheses, vocabulary = extensions_BWKV.shape
    log_probs_BWK1 = alive.log_probs_BWK[..., None]
    # A dead hypothesis may hold anything, NaN too: it must not be computed with.
    possible_BWKV = (log_probs_BWK1 > -jnp.inf) & allowed_BWV[:, :, None, :]
    scores_BWKV = jnp.where(possible_BWKV, log_probs_BWK1 + extensions_BWKV, -jnp.inf)
    log_probs_BWC, flat_BWC = top_k(
        scores_BWKV.reshape(batch, ways, hypotheses * vocabulary), 2 * hypotheses
    )
    parents_BWC, tokens_BWC = divmod(flat_BWC, vocabulary)
    return Candidates(log_probs_BWC, parents_BWC, tokens_BWC)


def keep_finished(
    finished: Finished,
    alive: Alive,
    candidates: Candidates,
    ends_BWC: jax.Array,
    step_B: jax.Array,
    kind: Penalty,
    alpha: float,
) -> Finished:
    """The pool after candidates that end have been laid to it.

    A candidate that ends counts only if it ranks among the first K of all candidates: else a
    search with a nearly certain first token would also collect the empty output.
    """
    hypotheses = alive.log_probs_BWK.shape[-1]
    length_B11 = (step_B + 1)[:, None, None]
    counted_BWK = ends_BWC[..., :hypotheses]
    log_probs_BWK = jnp.where(counted_BWK, candidates.log_probs_BWC[..., :hypotheses], -jnp.inf)
    ended = Finished(
        tokens_BWKT=take_hypotheses(alive.tokens_BWKT, candidates.parents_BWC[..., :hypotheses]),
        log_probs_BWK=log_probs_BWK,
        scores_BWK=log_probs_BWK / length_penalty(length_B11, kind, alpha),
        lengths_BWK=jnp.broadcast_to(length_B11, log_probs_BWK.shape),
    )
    both = jax.tree.map(lambda old, new: jnp.concatenate([old, new], axis=2), finished, ended)
    # top_k is stable: at a tie the one that finished earlier stays ahead.
    _, order_BWK = jax.lax.top_k(both.scores_BWK, hypotheses)
    return jax.tree.map(lambda values: take_hypotheses(values, order_BWK), both)


def keep_alive(
    alive: Alive, candidates: Candidates, ends_BWC: jax.Array, step_B: jax.Array
) -> tuple[Alive, jax.Array]:
    """The K best candidates that do not end, and the ranks of their parents [B, W, K]."""
    hypotheses = alive.log_probs_BWK.shape[-1]
    going_on_BWC = jnp.where(ends_BWC, -jnp.inf, candidates.log_probs_BWC)
    log_probs_BWK, chosen_BWK = jax.lax.top_k(going_on_BWC, hypotheses)
    parents_BWK = take_hypotheses(candidates.parents_BWC, chosen_BWK)
    tokens_BWK = take_hypotheses(candidates.tokens_BWC, chosen_BWK)
    here_BT = jnp.arange(alive.tokens_BWKT.shape[-1])[None] == step_B[:, None]
    tokens_BWKT = jnp.where(
        here_BT[:, None, None],
        tokens_BWK[..., None],
        take_hypotheses(alive.tokens_BWKT, parents_BWK),
    )
    return Alive(tokens_BWKT, log_probs_BWK), parents_BWK


def take_hypotheses(values: jax.Array, order_BWK: jax.Array) -> jax.Array:
    """values[b, w, order[b, w, k]] for each k; values lead with [B, W, any]."""
    index = order_BWK.reshape(*order_BWK.shape, *(1,) * (values.ndim - 3))
    return jnp.take_along_axis(values, index, axis=2)
