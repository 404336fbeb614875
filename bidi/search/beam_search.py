"""Bidirectional beam search: ONE `lax.while_loop` over batched beam tensors.

The search knows nothing of models: it is handed a function that prices the next tokens of pairs.
What the hypotheses of the two directions have to do with each other is the coupling's affair.

Letters: B rows, Q sentences in the queue, P pairs, W ways, G beams (one a way; one in all for the
coupling `joint`), K hypotheses a beam, C candidates, N n-best, T steps, V vocabulary.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from bidi.models.prices import Prices
from bidi.models.slots import Place, Room
from bidi.search import hypotheses as hyps
from bidi.search import queue
from bidi.search.config import SearchConfig
from bidi.search.coupling import Coupling
from bidi.search.hypotheses import Markers
from bidi.search.scoring import best_reachable_score, length_penalty
from bidi.search.slots import Held, first_held, follow

DecodeStep = Callable[[Any, jax.Array, Place], tuple[Prices, Any]]


@flax.struct.dataclass
class BeamSearchResult:
    """The n-best lists of each beam.

    Attributes:
        tokens_QGNT: int32, outputs in reading order, PAD behind the end.
        lengths_QGN: int32, tokens, without the end marker.
        log_probs_QGN: float32, -inf where there is no such hypothesis.
        scores_QGN: float32, log-probability over length penalty.
        finished_QGN: bool, whether the output was ended by its end marker.
        valid_QGN: bool, whether there is an n-th hypothesis at all.
        winner_Q: int32, the beam with the better best hypothesis: a finished one before any
            unfinished one (unless `rank_unfinished`), then the score, then the first way.
        steps_Q: int32, steps after which each sentence was done.
        lost_Q: bool, whether the search of a sentence was given up, as there was too little room in
            the cache: its other entries mean nothing.
        steps: int32, steps that the loop ran.
    """

    tokens_QGNT: jax.Array
    lengths_QGN: jax.Array
    log_probs_QGN: jax.Array
    scores_QGN: jax.Array
    finished_QGN: jax.Array
    valid_QGN: jax.Array
    winner_Q: jax.Array
    steps_Q: jax.Array
    lost_Q: jax.Array
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
    room: Room,
    config: SearchConfig,
    winner_only: bool = False,
) -> BeamSearchResult:
    """Searches the best outputs of a queue of sentences, both directions in lock step.

    Args:
        decode_step: `(cache, tokens_BPW, place) -> (prices, cache)`. Prices the tokens
            after `tokens_BPW` (int32, the last ones written) of streams that stand at `place`, in
            pairs that run side by side, P being `config.make_coupling(W).pairs`.
            Log-probabilities are finite and at most 0.
        cache: the pytree that goes through `decode_step`, for B rows. The search never looks into
            it nor reorders it: what a stream reads of what was written is said by its slots, which
            is never anything of a former sentence of its row.
        markers: the directions.
        max_length_Q: int32, the greatest length of each sentence's outputs, end marker included; 0
            skips it. `joint` rounds an even one down, since its longest output ends at both ends;
            what it cuts off at an odd one has a token more, as each end has written as many.
        rows: static, B: sentences that are worked on at a time, at most Q.
        steps: static, room for tokens: `config.stream_steps` of the greatest of `max_length_Q`.
        room: static, slots that the cache has. With `slots.whole_room` no sentence is lost.
        config: see `SearchConfig`.
        winner_only: static, whether a sentence is done as soon as its winner is certain: `winner_Q`
            and the first hypothesis of that beam are those of the whole search; the other
            hypotheses mean nothing.

    Returns:
        The n-best hypotheses of each beam.
    """
    ways = len(markers.directions)
    coupling = config.make_coupling(ways)
    max_steps_Q = -(-max_length_Q // coupling.streams_of_hypothesis)
    rounds = _Rounds(
        decode_step=decode_step,
        markers=markers,
        config=config,
        winner_only=winner_only,
        coupling=coupling,
        max_steps_Q=max_steps_Q,
        # What is cut off, too: a token for each stream and step.
        longest_Q=max_steps_Q * coupling.streams_of_hypothesis,
    )

    def beams(sentences: int) -> tuple[hyps.Alive, hyps.Finished]:
        number = ways // coupling.streams_of_hypothesis
        return hyps.empty_beams(sentences, ways, coupling.hypotheses, steps, number)

    sentences = len(max_length_Q)
    first = _State(
        steps=jnp.int32(0),
        rows=queue.fresh_rows(beams(rows), first_held(rows, ways, coupling, room)),
        outcomes=queue.Outcomes(
            *beams(sentences), jnp.zeros(sentences, jnp.int32), jnp.zeros(sentences, bool)
        ),
        next_sentence=jnp.int32(rows),
        cache=cache,
    )
    last = jax.lax.while_loop(lambda state: ~state.rows.idle_B.all(), rounds.extend, first)
    return _result(last, coupling, markers, rounds.longest_Q, config)


@dataclasses.dataclass(frozen=True)
class _Rounds:
    """What all rounds of the loop share; the first four as for `beam_search`.

    Attributes:
        coupling: the config's.
        max_steps_Q: int32, steps that a stream of each sentence makes at most.
        longest_Q: int32, tokens of its longest output.
    """

    decode_step: DecodeStep
    markers: Markers
    config: SearchConfig
    winner_only: bool
    coupling: Coupling
    max_steps_Q: jax.Array
    longest_Q: jax.Array

    def extend(self, state: _State) -> _State:
        """One round: every row's alive hypotheses grow by a token; rows that are done move on."""
        config, coupling, rows = self.config, self.coupling, state.rows
        step_B = rows.step_B
        max_steps_B = self.max_steps_Q[rows.sentence_B]
        at = hyps.At(step_B, step_B + 1 >= max_steps_B, config.min_length)
        prices, cache = self._price(state)

        # --> the 2K best continuations of each beam
        with jax.named_scope("top_k"):
            candidates = coupling.candidates(rows.alive, prices, at, self.markers)
        finished = hyps.keep_finished(
            rows.finished, rows.alive, candidates, config.length_penalty, config.alpha
        )
        alive, parents_BGK = hyps.keep_alive(rows.alive, candidates, step_B)

        # --> what is done makes room
        settled_B = self._settled(rows, alive, finished) | at.last_B
        with jax.named_scope("bookkeeping"):
            held, short_B = self._follow(rows, alive, parents_BGK)
            extended = dataclasses.replace(
                rows,
                step_B=jnp.where(rows.idle_B, step_B, step_B + 1),
                alive=alive,
                finished=finished,
                held=held,
            )
            rows_after, outcomes, next_sentence = queue.move_on(
                extended,
                state.outcomes,
                state.next_sentence,
                done_B=~rows.idle_B & (settled_B | short_B),
                lost_B=~settled_B,
            )
        return _State(state.steps + 1, rows_after, outcomes, next_sentence, cache)

    def _price(self, state: _State) -> tuple[Prices, Any]:
        """The prices of what may follow the last tokens, and the cache."""
        rows = state.rows
        starts_W1 = jnp.array(self.markers.starts, jnp.int32)[:, None]
        last_BWK = hyps.last_tokens(rows.alive, rows.step_B)
        last_BWK = jnp.where(rows.step_B[:, None, None] == 0, starts_W1[None], last_BWK)
        place = Place(rows.sentence_B, rows.step_B, *rows.held.both)
        return self.decode_step(state.cache, self.coupling.to_pairs(last_BWK), place)

    def _follow(
        self, rows: queue.Rows, alive: hyps.Alive, parents_BGK: jax.Array
    ) -> tuple[Held, jax.Array]:
        """The slots of the next step, and where there are too few of them, [B]."""
        coupling = self.coupling
        ended_BWK = jnp.zeros(alive.tokens_BWKT.shape[:3], bool)
        if coupling.streams_of_hypothesis > 1:
            # One of the two may have ended before the other.
            ends_W1 = jnp.array(self.markers.ends, jnp.int32)[:, None]
            ended_BWK = hyps.last_tokens(alive, rows.step_B + 1) == ends_W1[None]
        pairs, streams = rows.held.pairs, rows.held.streams
        short_B = jnp.zeros_like(rows.idle_B)
        if pairs is not None:
            parents_BPW = coupling.parent_pairs(parents_BGK)
            pairs, short_of_pairs_B = follow(pairs, parents_BPW, coupling.to_pairs(ended_BWK))
            short_B |= short_of_pairs_B
        if streams is not None:
            parents_BKW, ended_BKW = (x.swapaxes(1, 2) for x in (parents_BGK, ended_BWK))
            streams, short_of_streams_B = follow(streams, parents_BKW, ended_BKW)
            short_B |= short_of_streams_B
        return Held(pairs, streams), short_B

    def _settled(self, rows: queue.Rows, alive: hyps.Alive, finished: hyps.Finished) -> jax.Array:
        """Where nothing that is alive after this step can change what is asked for, [B]."""
        bound_BG = best_reachable_score(
            alive.log_probs_BGK,
            self.coupling.streams_of_hypothesis * rows.step_B + 2,
            self.longest_Q[rows.sentence_B],
            self.config.length_penalty,
            self.config.alpha,
        )
        if not self.winner_only:
            # Whatever ends later stays behind an equal score.
            return (finished.scores_BGK[..., self.config.n_best - 1] >= bound_BG).all(axis=1)
        best_BG = finished.scores_BGK[..., 0]
        best_B1 = best_BG.max(axis=1, keepdims=True)
        # Of equal scores that of the first beam wins, see `_winner`.
        first_B1 = jnp.argmax(best_BG, axis=1, keepdims=True)
        before_BG = jnp.arange(best_BG.shape[1])[None] < first_B1
        return jnp.where(before_BG, best_B1 > bound_BG, best_B1 >= bound_BG).all(axis=1)


def _result(
    state: _State,
    coupling: Coupling,
    markers: Markers,
    longest_Q: jax.Array,
    config: SearchConfig,
) -> BeamSearchResult:
    """Puts the finished and the unfinished hypotheses into one n-best list a beam."""
    # A sentence that was settled before its maximum length has nothing cut off; but by the bound
    # that settled it, its alive hypotheses do not come before any of its n best, or before the
    # winner's best if that alone was searched.
    outcomes = state.outcomes
    log_probs_QGK = outcomes.alive.log_probs_BGK
    length_Q = jnp.maximum(longest_Q, 1)
    penalty_Q = length_penalty(length_Q, config.length_penalty, config.alpha)
    cut_off = hyps.Finished(
        tokens_BWKT=outcomes.alive.tokens_BWKT,
        log_probs_BGK=log_probs_QGK,
        scores_BGK=log_probs_QGK / penalty_Q[:, None, None],
        lengths_BGK=jnp.broadcast_to(length_Q[:, None, None], log_probs_QGK.shape),
    )
    both = jax.tree.map(lambda *beams: jnp.concatenate(beams, axis=2), outcomes.finished, cut_off)
    # A sentence without room for a prediction took a step in vain.
    searched_Q11 = (longest_Q > 0)[:, None, None]
    log_probs_QGC = jnp.where(searched_Q11, both.log_probs_BGK, -jnp.inf)
    both = dataclasses.replace(
        both,
        log_probs_BGK=log_probs_QGC,
        scores_BGK=jnp.where(searched_Q11, both.scores_BGK, -jnp.inf),
    )
    valid_QGC = log_probs_QGC > -jnp.inf
    finished_QGC = (
        valid_QGC & (jnp.arange(valid_QGC.shape[-1]) < valid_QGC.shape[-1] // 2)[None, None]
    )
    order_QGN = _n_best(both.scores_BGK, valid_QGC, finished_QGC, config)
    best = jax.tree.map(lambda values: hyps.take_hypotheses(values, order_QGN), both)
    valid_QGN = hyps.take_hypotheses(valid_QGC, order_QGN)
    finished_QGN = hyps.take_hypotheses(finished_QGC, order_QGN)
    lengths_QGN = jnp.where(valid_QGN, best.lengths_BGK - finished_QGN, 0)
    return BeamSearchResult(
        tokens_QGNT=coupling.reading_order(best.tokens_BWKT, lengths_QGN, markers),
        lengths_QGN=lengths_QGN,
        log_probs_QGN=best.log_probs_BGK,
        scores_QGN=best.scores_BGK,
        finished_QGN=finished_QGN,
        valid_QGN=valid_QGN,
        winner_Q=_winner(best.scores_BGK[..., 0], finished_QGN[..., 0], config),
        steps_Q=jnp.where(longest_Q > 0, outcomes.steps_Q, 0),
        lost_Q=outcomes.lost_Q,
        steps=state.steps,
    )


def _n_best(
    scores_QGC: jax.Array, valid_QGC: jax.Array, finished_QGC: jax.Array, config: SearchConfig
) -> jax.Array:
    """The order of the n-best list, [Q, G, N]; each half of C is in order already."""
    if config.rank_unfinished:
        key_QGC = -scores_QGC
    else:
        key_QGC = jnp.where(finished_QGC, 0, jnp.where(valid_QGC, 1, 2))
    return jnp.argsort(key_QGC, axis=-1, stable=True)[..., : config.n_best]


def _winner(scores_QG: jax.Array, finished_QG: jax.Array, config: SearchConfig) -> jax.Array:
    """The beam of the better best hypothesis, [Q]."""
    if not config.rank_unfinished:
        eligible_QG = finished_QG | ~finished_QG.any(axis=1, keepdims=True)
        scores_QG = jnp.where(eligible_QG, scores_QG, -jnp.inf)
    return jnp.argmax(scores_QG, axis=1).astype(jnp.int32)
