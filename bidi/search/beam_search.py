"""Bidirectional beam search: ONE `lax.while_loop` over batched beam tensors.

The search knows nothing of models: it is handed a function that prices the next tokens of pairs.
What the hypotheses of the two directions have to do with each other is the coupling's affair.

Letters: B rows, Q sentences in the queue, P pairs, W ways, K hypotheses a direction, C candidates,
N n-best, T steps, V vocabulary.
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
from bidi.search import queue
from bidi.search.coupling import Coupling, CouplingName, make_coupling
from bidi.search.scoring import Penalty, best_reachable_score, length_penalty


@flax.struct.dataclass
class Place:
    """Where the rows of a search stand.

    Attributes:
        sentence_B: int32, the sentence that each row works on, a place in the queue.
        step_B: int32, tokens written before; T at most.
        origins_BPWT: int32, the pair in whose place each step of a stream was written; at `step_B`
            its own.
    """

    sentence_B: jax.Array
    step_B: jax.Array
    origins_BPWT: jax.Array


DecodeStep = Callable[[Any, jax.Array, Place], tuple[jax.Array, Any]]


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
        tokens_QWNT: int32, in reading order, PAD behind the end.
        lengths_QWN: int32, tokens, without the end marker.
        log_probs_QWN: float32, -inf where there is no such hypothesis.
        scores_QWN: float32, log-probability over length penalty.
        finished_QWN: bool, whether the stream wrote its end marker.
        valid_QWN: bool, whether there is an n-th hypothesis at all.
        winner_Q: int32, the way with the better best hypothesis: a finished one before any
            unfinished one (unless `rank_unfinished`), then the score, then the first way.
        steps_Q: int32, steps after which each sentence was done.
        steps: int32, steps that the loop ran.
    """

    tokens_QWNT: jax.Array
    lengths_QWN: jax.Array
    log_probs_QWN: jax.Array
    scores_QWN: jax.Array
    finished_QWN: jax.Array
    valid_QWN: jax.Array
    winner_Q: jax.Array
    steps_Q: jax.Array
    steps: jax.Array


@flax.struct.dataclass
class _State:
    """The loop's own state.

    Attributes:
        steps: int32, steps run.
        rows: see `queue.Rows`.
        outcomes: see `queue.Outcomes`.
        next_sentence: int32, the first one that no row has taken.
        cache: the model's.
    """

    steps: jax.Array
    rows: queue.Rows
    outcomes: queue.Outcomes
    next_sentence: jax.Array
    cache: Any


def beam_search(
    decode_step: DecodeStep,
    cache: Any,
    *,
    markers: Markers,
    max_length_Q: jax.Array,
    rows: int,
    steps: int,
    config: SearchConfig,
) -> BeamSearchResult:
    """Searches the best outputs of a queue of sentences, both directions in lock step.

    Args:
        decode_step: `(cache, tokens_BPW, place) -> (log_probs_BPWV, cache)`. Prices the tokens
            after `tokens_BPW` (int32, the last ones written) of streams that stand at `place`, in
            pairs that run side by side, P being `config.make_coupling(W).pairs`.
            Log-probabilities are finite and at most 0.
        cache: the pytree that goes through `decode_step`, for B rows. The search never looks into
            it nor reorders it: whose history a pair goes on with is said by its origins. What a
            former sentence of a row left in it is later than the row's step, or overwritten.
        markers: the directions.
        max_length_Q: int32, the greatest number of predictions of each sentence; 0 skips it.
        rows: static, B: sentences that are worked on at a time, at most Q.
        steps: static, no less than the greatest of `max_length_Q`: the room for tokens.
        config: see `SearchConfig`.

    Returns:
        The n-best hypotheses of each direction.
    """
    ways = len(markers.ways)
    coupling = config.make_coupling(ways)
    starts_W1 = jnp.array(markers.start, jnp.int32)[:, None]
    ends_W1 = jnp.array(markers.end, jnp.int32)[:, None]
    allowed_WV = jnp.asarray(markers.allowed_WV)
    is_end_WV = jnp.arange(allowed_WV.shape[1])[None] == ends_W1

    def not_done(state: _State) -> jax.Array:
        return ~state.rows.idle_B.all()

    def extend(state: _State) -> _State:
        step_B, alive = state.rows.step_B, state.rows.alive
        last_B11 = jnp.maximum(step_B - 1, 0)[:, None, None]
        last_BWK = jnp.take_along_axis(alive.tokens_BWKT, last_B11[..., None], axis=3)[..., 0]
        last_BWK = jnp.where(step_B[:, None, None] == 0, starts_W1[None], last_BWK)
        place = Place(state.rows.sentence_B, step_B, state.rows.origins_BPWT)
        log_probs_BPWV, cache = decode_step(state.cache, coupling.to_pairs(last_BWK), place)
        extensions_BWKV = coupling.extensions(log_probs_BPWV, alive.log_probs_BWK > -jnp.inf)

        # --> the 2K best continuations of each direction
        may_end_B11 = (step_B >= config.min_length)[:, None, None]
        with jax.named_scope("top_k"):
            candidates = hyps.best_candidates(
                alive, extensions_BWKV, allowed_WV[None] & (may_end_B11 | ~is_end_WV[None])
            )
        ends_BWC = candidates.tokens_BWC == ends_W1[None]
        finished = hyps.keep_finished(
            state.rows.finished,
            alive,
            candidates,
            ends_BWC,
            step_B,
            config.length_penalty,
            config.alpha,
        )
        alive, parents_BWK = hyps.keep_alive(alive, candidates, ends_BWC, step_B)

        # --> what is done makes room
        max_length_B = max_length_Q[state.rows.sentence_B]
        bound_BW = best_reachable_score(
            alive.log_probs_BWK, step_B + 2, max_length_B, config.length_penalty, config.alpha
        )
        settled_B = (finished.scores_BWK[..., config.n_best - 1] >= bound_BW).all(axis=1)
        with jax.named_scope("reorder"):
            rows_after, outcomes, next_sentence = queue.move_on(
                dataclasses.replace(
                    state.rows,
                    step_B=jnp.where(state.rows.idle_B, step_B, step_B + 1),
                    alive=alive,
                    finished=finished,
                    origins_BPWT=queue.follow(
                        state.rows.origins_BPWT, coupling.parent_pairs(parents_BWK), step_B
                    ),
                ),
                state.outcomes,
                state.next_sentence,
                done_B=~state.rows.idle_B & (settled_B | (step_B + 1 >= max_length_B)),
            )
        return _State(state.steps + 1, rows_after, outcomes, next_sentence, cache)

    first = _State(
        steps=jnp.int32(0),
        rows=queue.fresh_rows(rows, coupling.pairs, ways, coupling.hypotheses, steps),
        outcomes=queue.no_outcomes(len(max_length_Q), ways, coupling.hypotheses, steps),
        next_sentence=jnp.int32(rows),
        cache=cache,
    )
    last = jax.lax.while_loop(not_done, extend, first)
    return _result(last, markers, max_length_Q, config)


def _result(
    state: _State, markers: Markers, max_length_Q: jax.Array, config: SearchConfig
) -> BeamSearchResult:
    """Puts the finished and the unfinished hypotheses into one n-best list a direction."""
    # A sentence that was settled before its maximum length has nothing cut off; but by the bound
    # that settled it, its alive hypotheses do not come before any of its n best.
    outcomes = state.outcomes
    log_probs_QWK = outcomes.alive.log_probs_BWK
    length_Q = jnp.maximum(max_length_Q, 1)
    penalty_Q = length_penalty(length_Q, config.length_penalty, config.alpha)
    cut_off = hyps.Finished(
        tokens_BWKT=outcomes.alive.tokens_BWKT,
        log_probs_BWK=log_probs_QWK,
        scores_BWK=log_probs_QWK / penalty_Q[:, None, None],
        lengths_BWK=jnp.broadcast_to(length_Q[:, None, None], log_probs_QWK.shape),
    )
    both = jax.tree.map(lambda *beams: jnp.concatenate(beams, axis=2), outcomes.finished, cut_off)
    # A sentence without room for a prediction took a step in vain.
    searched_Q11 = (max_length_Q > 0)[:, None, None]
    log_probs_QWC = jnp.where(searched_Q11, both.log_probs_BWK, -jnp.inf)
    both = dataclasses.replace(
        both,
        log_probs_BWK=log_probs_QWC,
        scores_BWK=jnp.where(searched_Q11, both.scores_BWK, -jnp.inf),
    )
    valid_QWC = log_probs_QWC > -jnp.inf
    finished_QWC = (
        valid_QWC & (jnp.arange(valid_QWC.shape[-1]) < valid_QWC.shape[-1] // 2)[None, None]
    )
    order_QWN = _n_best(both.scores_BWK, valid_QWC, finished_QWC, config)
    best = jax.tree.map(lambda values: hyps.take_hypotheses(values, order_QWN), both)
    valid_QWN = hyps.take_hypotheses(valid_QWC, order_QWN)
    finished_QWN = hyps.take_hypotheses(finished_QWC, order_QWN)
    lengths_QWN = jnp.where(valid_QWN, best.lengths_BWK - finished_QWN, 0)
    return BeamSearchResult(
        tokens_QWNT=_in_reading_order(best.tokens_BWKT, lengths_QWN, markers),
        lengths_QWN=lengths_QWN,
        log_probs_QWN=best.log_probs_BWK,
        scores_QWN=best.scores_BWK,
        finished_QWN=finished_QWN,
        valid_QWN=valid_QWN,
        winner_Q=_winner(best.scores_BWK[..., 0], finished_QWN[..., 0], config),
        steps_Q=jnp.where(max_length_Q > 0, outcomes.steps_Q, 0),
        steps=state.steps,
    )


def _n_best(
    scores_QWC: jax.Array, valid_QWC: jax.Array, finished_QWC: jax.Array, config: SearchConfig
) -> jax.Array:
    """The order of the n-best list, [Q, W, N]; each half of C is in order already."""
    if config.rank_unfinished:
        key_QWC = -scores_QWC
    else:
        key_QWC = jnp.where(finished_QWC, 0, jnp.where(valid_QWC, 1, 2))
    return jnp.argsort(key_QWC, axis=-1, stable=True)[..., : config.n_best]


def _winner(scores_QW: jax.Array, finished_QW: jax.Array, config: SearchConfig) -> jax.Array:
    """The way of the better best hypothesis, [Q]."""
    if not config.rank_unfinished:
        eligible_QW = finished_QW | ~finished_QW.any(axis=1, keepdims=True)
        scores_QW = jnp.where(eligible_QW, scores_QW, -jnp.inf)
    return jnp.argmax(scores_QW, axis=1).astype(jnp.int32)


def _in_reading_order(
    tokens_QWNT: jax.Array, lengths_QWN: jax.Array, markers: Markers
) -> jax.Array:
    """Turns what was written from the right, and puts PAD behind the end."""
    steps_T = jnp.arange(tokens_QWNT.shape[-1])[None, None, None]
    lengths_QWN1 = lengths_QWN[..., None]
    from_right_W = jnp.array([way == "r2l" for way in markers.ways])[None, :, None, None]
    index_QWNT = jnp.where(from_right_W, lengths_QWN1 - 1 - steps_T, steps_T)
    written_QWNT = jnp.take_along_axis(tokens_QWNT, jnp.maximum(index_QWNT, 0), axis=3)
    return jnp.where(steps_T < lengths_QWN1, written_QWNT, hyps.PAD)
