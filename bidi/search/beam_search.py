"""Bidirectional beam search: ONE `lax.while_loop` over batched beam tensors.

The search knows nothing of models: it is handed a function that prices the next tokens of pairs.
What the hypotheses of the two directions have to do with each other is the coupling's affair.

Letters: B batch, P pairs, W ways, K hypotheses a direction, C candidates, N n-best, T steps,
V vocabulary.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import gin
import jax
import jax.numpy as jnp
import numpy as np

from bidi.search import hypotheses as hyps
from bidi.search.coupling import Coupling, CouplingName, make_coupling
from bidi.search.scoring import Penalty, best_reachable_score, length_penalty

PAD = 0  # behind the end of an output; never a token

DecodeStep = Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, Any]]


@gin.configurable("Search")
@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """How outputs are searched for.

    Attributes:
        coupling: `none`: each direction has a beam of its own and reads nothing of the other;
            `paired`: the k-th hypothesis of one direction beside the k-th of the other, half of
            the beam each (SB-NMT); `product`: every combination, a token's probability averaged
            over the partners (Su 2019).
        beam_size: hypotheses of a direction; of both together for `paired`.
        n_best: hypotheses returned of each direction.
        length_penalty: `gnmt` or `plain`, see `scoring.length_penalty`.
        alpha: exponent of the length penalty, any sign.
        min_length: tokens before an output may end.
        max_length_factor: with the next two, the greatest number of predictions for a source of S
            tokens: min(factor * S + offset, cap).
        max_length_offset: see above.
        max_length_cap: see above.
        rank_unfinished: whether hypotheses cut off at the maximum length compete by score with
            those that ended; else they come after them.
    """

    coupling: CouplingName = "paired"
    beam_size: int = 4
    n_best: int = 1
    length_penalty: Penalty = "gnmt"
    alpha: float = 0.6
    min_length: int = 1
    max_length_factor: float = 2.0
    max_length_offset: int = 10
    max_length_cap: int = 256
    rank_unfinished: bool = False

    def make_coupling(self, ways: int) -> Coupling:
        """The coupling for a model of so many directions; ValueError where they do not fit."""
        coupling = make_coupling(self.coupling, self.beam_size, ways)
        if not 1 <= self.n_best <= coupling.hypotheses:
            raise ValueError(
                f"Search.n_best = {self.n_best}, but each direction has {coupling.hypotheses} "
                f"hypotheses (coupling {self.coupling!r}, beam_size {self.beam_size})"
            )
        return coupling

    def max_length(self, source_length: np.ndarray) -> np.ndarray:
        """The greatest number of predictions for sources of these lengths; 0 for an empty one."""
        length = np.floor(self.max_length_factor * source_length) + self.max_length_offset
        length = np.clip(length, 1, self.max_length_cap)
        return np.where(source_length > 0, length, 0).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Markers:
    """The directions of a search and their markers.

    Attributes:
        ways: 'l2r' or 'r2l' for each way.
        start: the token that each way reads first.
        end: the token with which each way ends.
        allowed_WV: bool, the tokens that each way may write, its end marker included.
    """

    ways: tuple[str, ...]
    start: tuple[int, ...]
    end: tuple[int, ...]
    allowed_WV: np.ndarray


@flax.struct.dataclass
class BeamSearchResult:
    """The n-best lists of each direction.

    Attributes:
        tokens_BWNT: int32, in reading order, PAD behind the end.
        lengths_BWN: int32, tokens, without the end marker.
        log_probs_BWN: float32, -inf where there is no such hypothesis.
        scores_BWN: float32, log-probability over length penalty.
        finished_BWN: bool, whether the stream wrote its end marker.
        valid_BWN: bool, whether there is an n-th hypothesis at all.
        winner_B: int32, the way with the better best hypothesis: a finished one before any
            unfinished one (unless `rank_unfinished`), then the score, then the first way.
        steps: int32, steps that the loop ran.
    """

    tokens_BWNT: jax.Array
    lengths_BWN: jax.Array
    log_probs_BWN: jax.Array
    scores_BWN: jax.Array
    finished_BWN: jax.Array
    valid_BWN: jax.Array
    winner_B: jax.Array
    steps: jax.Array


@flax.struct.dataclass
class _State:
    """The loop's own state.

    Attributes:
        step: int32, tokens that every alive hypothesis of a sentence not yet done has.
        alive: see `hyps.Alive`.
        finished: see `hyps.Finished`.
        done_B: bool, sentences that cannot change any more; their beams are frozen.
        cache: the model's, leaves lead with [B, P, W].
    """

    step: jax.Array
    alive: hyps.Alive
    finished: hyps.Finished
    done_B: jax.Array
    cache: Any


def beam_search(
    decode_step: DecodeStep,
    cache: Any,
    *,
    markers: Markers,
    max_length_B: jax.Array,
    steps: int,
    config: SearchConfig,
) -> BeamSearchResult:
    """Searches the best outputs of a batch of sentences, both directions in lock step.

    Args:
        decode_step: `(cache, tokens_BPW, step) -> (log_probs_BPWV, cache)`. Prices the token after
            `tokens_BPW` (int32, the last ones written), the `step`-th of their streams, in pairs
            that run side by side. Log-probabilities are finite and at most 0.
        cache: the pytree that goes through `decode_step`; leaves lead with [B, P, W], P being
            `config.make_coupling(W).pairs`. What is the same for all pairs belongs in the closure.
        markers: the directions.
        max_length_B: int32, the greatest number of predictions of each sentence; 0 skips it.
        steps: static, no less than the greatest of `max_length_B`: the room for tokens.
        config: see `SearchConfig`.

    Returns:
        The n-best hypotheses of each direction.
    """
    coupling = config.make_coupling(len(markers.ways))
    starts_W1 = jnp.array(markers.start, jnp.int32)[:, None]
    ends_W1 = jnp.array(markers.end, jnp.int32)[:, None]
    allowed_WV = jnp.asarray(markers.allowed_WV)
    is_end_WV = jnp.arange(allowed_WV.shape[1])[None] == ends_W1

    def not_done(state: _State) -> jax.Array:
        return (state.step < steps) & ~state.done_B.all()

    def extend(state: _State) -> _State:
        step, alive, finished = state.step, state.alive, state.finished
        last_BWK = jax.lax.dynamic_index_in_dim(
            alive.tokens_BWKT, jnp.maximum(step - 1, 0), axis=3, keepdims=False
        )
        last_BWK = jnp.where(step == 0, starts_W1[None], last_BWK)
        log_probs_BPWV, cache = decode_step(state.cache, coupling.to_pairs(last_BWK), step)
        extensions_BWKV = coupling.extensions(log_probs_BPWV, alive.log_probs_BWK > -jnp.inf)

        # --> the 2K best continuations of each direction
        may_end = step >= config.min_length
        candidates = hyps.best_candidates(
            alive, extensions_BWKV, allowed_WV & (may_end | ~is_end_WV)
        )
        ends_BWC = candidates.tokens_BWC == ends_W1[None]
        finished = hyps.keep_finished(
            finished, alive, candidates, ends_BWC, step, config.length_penalty, config.alpha
        )
        alive, parents_BWK = hyps.keep_alive(alive, candidates, ends_BWC, step)

        # --> beams of sentences that were done stay as they were
        alive, finished = jax.tree.map(
            lambda old, new: hyps.where_done(state.done_B, old, new),
            (state.alive, state.finished),
            (alive, finished),
        )
        bound_BW = best_reachable_score(
            alive.log_probs_BWK, step + 2, max_length_B, config.length_penalty, config.alpha
        )
        settled_B = (finished.scores_BWK[..., config.n_best - 1] >= bound_BW).all(axis=1)
        return _State(
            step=step + 1,
            alive=alive,
            finished=finished,
            done_B=state.done_B | settled_B | (step + 1 >= max_length_B),
            cache=_reorder(cache, coupling.parent_pairs(parents_BWK), coupling),
        )

    first = _first(cache, coupling.hypotheses, len(markers.ways), steps, max_length_B)
    last = jax.lax.while_loop(not_done, extend, first)
    return _result(last, markers, max_length_B, config)


def _first(cache: Any, hypotheses: int, ways: int, steps: int, max_length_B: jax.Array) -> _State:
    """The state before the first step."""
    alive, finished = hyps.empty_beams(max_length_B.shape[0], ways, hypotheses, steps, PAD)
    return _State(jnp.int32(0), alive, finished, done_B=max_length_B <= 0, cache=cache)


def _reorder(cache: Any, parents_BPW: jax.Array, coupling: Coupling) -> Any:
    """Each stream of each new pair goes on with its parent's cache, leaves [B, P, W, ...]."""
    if coupling.pairs == 1:
        return cache
    ways_W = jnp.arange(parents_BPW.shape[-1])
    take = jax.vmap(lambda leaf_PW, parents_PW: leaf_PW[parents_PW, ways_W])
    return jax.tree.map(lambda leaf: take(leaf, parents_BPW), cache)


def _result(
    state: _State, markers: Markers, max_length_B: jax.Array, config: SearchConfig
) -> BeamSearchResult:
    """Puts the finished and the unfinished hypotheses into one n-best list a direction."""
    # A sentence that was settled before its maximum length has nothing cut off; but by the bound
    # that settled it, its alive hypotheses do not come before any of its n best.
    searched_B11 = (max_length_B > 0)[:, None, None]
    log_probs_BWK = jnp.where(searched_B11, state.alive.log_probs_BWK, -jnp.inf)
    length_B = jnp.maximum(max_length_B, 1)
    penalty_B = length_penalty(length_B, config.length_penalty, config.alpha)
    cut_off = hyps.Finished(
        tokens_BWKT=state.alive.tokens_BWKT,
        log_probs_BWK=log_probs_BWK,
        scores_BWK=log_probs_BWK / penalty_B[:, None, None],
        lengths_BWK=jnp.broadcast_to(length_B[:, None, None], log_probs_BWK.shape),
    )
    both = jax.tree.map(lambda *beams: jnp.concatenate(beams, axis=2), state.finished, cut_off)
    valid_BWC = both.scores_BWK > -jnp.inf
    finished_BWC = (
        valid_BWC & (jnp.arange(valid_BWC.shape[-1]) < valid_BWC.shape[-1] // 2)[None, None]
    )
    order_BWN = _n_best(both.scores_BWK, valid_BWC, finished_BWC, config)
    best = jax.tree.map(lambda values: hyps.take_hypotheses(values, order_BWN), both)
    valid_BWN = hyps.take_hypotheses(valid_BWC, order_BWN)
    finished_BWN = hyps.take_hypotheses(finished_BWC, order_BWN)
    lengths_BWN = jnp.where(valid_BWN, best.lengths_BWK - finished_BWN, 0)
    return BeamSearchResult(
        tokens_BWNT=_in_reading_order(best.tokens_BWKT, lengths_BWN, markers),
        lengths_BWN=lengths_BWN,
        log_probs_BWN=best.log_probs_BWK,
        scores_BWN=best.scores_BWK,
        finished_BWN=finished_BWN,
        valid_BWN=valid_BWN,
        winner_B=_winner(best.scores_BWK[..., 0], finished_BWN[..., 0], config),
        steps=state.step,
    )


def _n_best(
    scores_BWC: jax.Array, valid_BWC: jax.Array, finished_BWC: jax.Array, config: SearchConfig
) -> jax.Array:
    """The order of the n-best list, [B, W, N]; each half of C is in order already."""
    if config.rank_unfinished:
        key_BWC = -scores_BWC
    else:
        key_BWC = jnp.where(finished_BWC, 0, jnp.where(valid_BWC, 1, 2))
    return jnp.argsort(key_BWC, axis=-1, stable=True)[..., : config.n_best]


def _winner(scores_BW: jax.Array, finished_BW: jax.Array, config: SearchConfig) -> jax.Array:
    """The way of the better best hypothesis, [B]."""
    if not config.rank_unfinished:
        eligible_BW = finished_BW | ~finished_BW.any(axis=1, keepdims=True)
        scores_BW = jnp.where(eligible_BW, scores_BW, -jnp.inf)
    return jnp.argmax(scores_BW, axis=1).astype(jnp.int32)


def _in_reading_order(
    tokens_BWNT: jax.Array, lengths_BWN: jax.Array, markers: Markers
) -> jax.Array:
    """Turns what was written from the right, and puts PAD behind the end."""
    steps_T = jnp.arange(tokens_BWNT.shape[-1])[None, None, None]
    lengths_BWN1 = lengths_BWN[..., None]
    from_right_W = jnp.array([way == "r2l" for way in markers.ways])[None, :, None, None]
    index_BWNT = jnp.where(from_right_W, lengths_BWN1 - 1 - steps_T, steps_T)
    written_BWNT = jnp.take_along_axis(tokens_BWNT, jnp.maximum(index_BWNT, 0), axis=3)
    return jnp.where(steps_T < lengths_BWN1, written_BWNT, PAD)
