"""The beams of a search: alive hypotheses, finished ones, and their n-best list.

Letters: B batch, W ways, G beams (one a way; one in all where a hypothesis is a pair of both
ways), K hypotheses a beam, C candidates, N n-best, T steps, V vocabulary.
Everywhere the best comes first; a dead or absent hypothesis has a log-probability of -inf.
"""

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from bidi.models.prices import BLOCK, Prices, log_probs
from bidi.search.scoring import Penalty, length_penalty
from bidi.search.top_k import top_k, top_k_of_beam

PAD = 0  # behind the end of an output; never a token


@dataclasses.dataclass(frozen=True)
class Markers:
    """The directions of a search and their markers.

    Attributes:
        directions: 'l2r' or 'r2l' for each way.
        starts: the token that each way reads first.
        ends: the token with which each way ends.
        allowed_WV: bool, the tokens that each way may write, its end marker included.
    """

    directions: tuple[str, ...]
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    allowed_WV: np.ndarray

    def text(self) -> np.ndarray:
        """bool [W, V], those of them that are no end marker."""
        text_WV = self.allowed_WV.copy()
        text_WV[np.arange(len(self.directions)), self.ends] = False
        return text_WV


@dataclasses.dataclass(frozen=True)
class At:
    """Where a row of a search stands, and what it may do there.

    Attributes:
        step_B: int32, tokens that were written before.
        last_B: bool, whether no other step follows.
        min_length: tokens before an output may end.
    """

    step_B: jax.Array
    last_B: jax.Array
    min_length: int


@flax.struct.dataclass
class Alive:
    """Hypotheses that may grow, best first.

    Attributes:
        tokens_BWKT: int32, what was written, in the order of writing.
        log_probs_BGK: float32, -inf where there is no such hypothesis.
    """

    tokens_BWKT: jax.Array
    log_probs_BGK: jax.Array


@flax.struct.dataclass
class Finished:
    """The best hypotheses that have ended, best score first; they never change.

    Attributes:
        tokens_BWKT: int32, without the end marker.
        log_probs_BGK: float32, the end marker included; -inf where there is no such hypothesis.
        scores_BGK: float32, log-probability over length penalty.
        lengths_BGK: int32, length of the output: its tokens and one end marker.
    """

    tokens_BWKT: jax.Array
    log_probs_BGK: jax.Array
    scores_BGK: jax.Array
    lengths_BGK: jax.Array


@flax.struct.dataclass
class Candidates:
    """The best extensions of the alive hypotheses, best first.

    Attributes:
        log_probs_BGC: float32.
        parents_BGC: int32, rank of the hypothesis extended.
        tokens_BWC: int32, the token that each way is extended by.
        ends_BGC: bool, whether the hypothesis ends so; the same parent's other extensions do not.
        lengths_BGC: int32, length of the output if it ends so.
    """

    log_probs_BGC: jax.Array
    parents_BGC: jax.Array
    tokens_BWC: jax.Array
    ends_BGC: jax.Array
    lengths_BGC: jax.Array


def empty_beams(
    batch: int, ways: int, hypotheses: int, steps: int, beams: int
) -> tuple[Alive, Finished]:
    """One empty alive hypothesis in each beam, none finished."""
    tokens_BWKT = jnp.full((batch, ways, hypotheses, steps), PAD, jnp.int32)
    nothing_BGK = jnp.full((batch, beams, hypotheses), -jnp.inf)
    lengths_BGK = jnp.zeros((batch, beams, hypotheses), jnp.int32)
    alive = Alive(tokens_BWKT, nothing_BGK.at[..., 0].set(0.0))
    return alive, Finished(tokens_BWKT, nothing_BGK, nothing_BGK, lengths_BGK)


def best_extensions(
    alive: Alive, extensions_BGKM: jax.Array, possible_BGKM: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The 2K best of M extensions of each hypothesis: enough, as at most K of them end.

    Ties go to the hypothesis that ranks higher, then to the extension that comes first.

    Returns:
        Log-probabilities, ranks of the parents and places in M, all [B, G, C].
    """
    batch, beams, hypotheses, extensions = extensions_BGKM.shape
    log_probs_BGK1 = alive.log_probs_BGK[..., None]
    # A dead hypothesis may hold anything, NaN too: it must not be computed with.
    possible_BGKM &= log_probs_BGK1 > -jnp.inf
    sums_BGKM = jnp.where(possible_BGKM, log_probs_BGK1 + extensions_BGKM, -jnp.inf)
    log_probs_BGC, flat_BGC = top_k(
        sums_BGKM.reshape(batch, beams, hypotheses * extensions), 2 * hypotheses
    )
    parents_BGC, places_BGC = divmod(flat_BGC, extensions)
    return log_probs_BGC, parents_BGC, places_BGC


def best_tokens(
    alive: Alive, prices: Prices, at: At, markers: Markers
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`best_extensions` by a token that may be written there: the places in M are tokens.

    `prices` are of hypotheses: their P are K.
    """
    allowed = functools.partial(_may_be_written, at=at, markers=markers)
    masked_J = masked_blocks(markers.text())
    parts_BKW = alive.log_probs_BGK.swapaxes(1, 2), prices.greatest_BPW, prices.log_sum_BPW
    enough = 2 * prices.logits_BPWV.shape[1]
    return top_k_of_beam(prices.logits_BPWV, parts_BKW, _longer, allowed, masked_J, enough)


def masked_blocks(always_WV: np.ndarray) -> np.ndarray:
    """The blocks of a vocabulary in which not all tokens are always allowed to all ways, [J]."""
    ways, vocabulary = always_WV.shape
    blocks_WJL = np.pad(always_WV, ((0, 0), (0, -vocabulary % BLOCK))).reshape(ways, -1, BLOCK)
    return np.flatnonzero(~blocks_WJL.all(axis=(0, 2)))


def _longer(logits: jax.Array, alive: jax.Array, *parts: jax.Array) -> jax.Array:
    """Log-probabilities of hypotheses extended by tokens; of dead ones logits may be NaN."""
    return jnp.where(alive > -jnp.inf, alive + log_probs(logits, *parts), -jnp.inf)


def _may_be_written(tokens_BW: jax.Array, at: At, markers: Markers) -> jax.Array:
    """Whether tokens [B or 1, W, ...] may come there, [B, W, ...]; negative ones are none."""
    way_W = of_axis(jnp.arange(len(markers.directions)), 1, tokens_BW.ndim)
    may_end_B = of_axis(at.step_B >= at.min_length, 0, tokens_BW.ndim)
    is_end_BW = tokens_BW == of_axis(jnp.array(markers.ends), 1, tokens_BW.ndim)
    written_BW = jnp.asarray(markers.allowed_WV)[way_W, tokens_BW] & (tokens_BW >= 0)
    return written_BW & (may_end_B | ~is_end_BW)


def of_axis(values: jax.Array, axis: int, axes: int) -> jax.Array:
    """A row of values along one of so many axes, of size 1 along the others."""
    return values.reshape([-1 if other == axis else 1 for other in range(axes)])


def keep_finished(
    finished: Finished, alive: Alive, candidates: Candidates, kind: Penalty, alpha: float
) -> Finished:
    """The pool after candidates that end have been laid to it.

    A candidate that ends counts only if it ranks among the first K of all candidates: else a
    search with a nearly certain first token would also collect the empty output.
    """
    hypotheses = alive.log_probs_BGK.shape[-1]
    first_K = jax.tree.map(lambda values: values[..., :hypotheses], candidates)
    log_probs_BGK = jnp.where(first_K.ends_BGC, first_K.log_probs_BGC, -jnp.inf)
    ended = Finished(
        tokens_BWKT=take_hypotheses(alive.tokens_BWKT, first_K.parents_BGC),
        log_probs_BGK=log_probs_BGK,
        scores_BGK=log_probs_BGK / length_penalty(first_K.lengths_BGC, kind, alpha),
        lengths_BGK=first_K.lengths_BGC,
    )
    both = jax.tree.map(lambda old, new: jnp.concatenate([old, new], axis=2), finished, ended)
    # top_k is stable: at a tie the one that finished earlier stays ahead.
    _, order_BGK = jax.lax.top_k(both.scores_BGK, hypotheses)
    return jax.tree.map(lambda values: take_hypotheses(values, order_BGK), both)


def keep_alive(alive: Alive, candidates: Candidates, step_B: jax.Array) -> tuple[Alive, jax.Array]:
    """The K best candidates that do not end, and the ranks of their parents [B, G, K]."""
    hypotheses = alive.log_probs_BGK.shape[-1]
    going_on_BGC = jnp.where(candidates.ends_BGC, -jnp.inf, candidates.log_probs_BGC)
    log_probs_BGK, chosen_BGK = jax.lax.top_k(going_on_BGC, hypotheses)
    parents_BGK = take_hypotheses(candidates.parents_BGC, chosen_BGK)
    tokens_BWK = take_hypotheses(candidates.tokens_BWC, chosen_BGK)
    here_BT = jnp.arange(alive.tokens_BWKT.shape[-1])[None] == step_B[:, None]
    tokens_BWKT = jnp.where(
        here_BT[:, None, None],
        tokens_BWK[..., None],
        take_hypotheses(alive.tokens_BWKT, parents_BGK),
    )
    return Alive(tokens_BWKT, log_probs_BGK), parents_BGK


def last_tokens(alive: Alive, step_B: jax.Array) -> jax.Array:
    """The tokens [B, W, K] written at the step before, PAD at step 0."""
    last_B111 = jnp.maximum(step_B - 1, 0)[:, None, None, None]
    return jnp.take_along_axis(alive.tokens_BWKT, last_B111, axis=3)[..., 0]


def take_hypotheses(values: jax.Array, order_BGK: jax.Array) -> jax.Array:
    """values[b, w, order[b, g, k]] for each k; values lead with [B, W or G, any].

    A single beam's order holds for both ways.
    """
    index = order_BGK.reshape(*order_BGK.shape, *(1,) * (values.ndim - 3))
    return jnp.take_along_axis(values, index, axis=2)
