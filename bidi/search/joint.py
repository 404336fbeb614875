"""Hypotheses that are pairs: both ends of one output grow until they meet.

For models of the layout `halves` (`bidi.data.streams`). An output of n tokens is ceil(n / 2) tokens
from the left and the others from the right: both streams end at one step, or the right one at the
step before the left one. The pair's log-probability is the sum over all predictions of both; over
all outputs the probabilities sum to at most 1, as ends that do not meet have some too.

Letters: B batch, P pairs, W ways, V vocabulary, J blocks of it, K hypotheses, C candidates,
N n-best or hypotheses of all rows, T steps, R best tokens of one end, X extensions of a hypothesis
by a token at each end.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from bidi.models.prices import Prices, log_probs
from bidi.search import hypotheses as hyps
from bidi.search.top_k import top_k_of_beam

LEFT, RIGHT = 0, 1


@dataclasses.dataclass(frozen=True)
class Joint:
    """One beam of pairs."""

    hypotheses: int
    streams_of_hypothesis = 2
    combined = None

    @property
    def pairs(self) -> int:
        return self.hypotheses

    def to_pairs(self, values_BWK: jax.Array) -> jax.Array:
        return values_BWK.swapaxes(1, 2)

    def candidates(
        self, alive: hyps.Alive, prices: Prices, at: hyps.At, markers: hyps.Markers
    ) -> hyps.Candidates:
        last_BK = hyps.last_tokens(alive, at.step_B)[:, RIGHT]
        # The right end has ended at the step before: all that is left is that the left one ends.
        met_BK = last_BK == markers.ends[RIGHT]
        tokens_BWKX, grown_BKX, may_grow_BKX = self._grow(prices, at, markers)
        ended_BK, may_end_BK = self._end(prices, met_BK, at, markers)

        # --> an extension is the end, or a token at each end
        extensions_BKX = jnp.concatenate([ended_BK[..., None], grown_BKX], axis=-1)
        possible_BKX = jnp.concatenate(
            [may_end_BK[..., None], may_grow_BKX & ~met_BK[..., None]], axis=-1
        )
        log_probs_BGC, parents_BGC, places_BGC = hyps.best_extensions(
            alive, extensions_BKX[:, None], possible_BKX[:, None]
        )
        tokens_BWKX = jnp.pad(tokens_BWKX, ((0, 0), (0, 0), (0, 0), (1, 0)))
        of_parents_BWCX = hyps.take_hypotheses(tokens_BWKX, parents_BGC)
        met_BGC = jnp.take_along_axis(met_BK[:, None], parents_BGC, axis=2)
        return hyps.Candidates(
            log_probs_BGC,
            parents_BGC,
            tokens_BWC=jnp.take_along_axis(of_parents_BWCX, places_BGC[..., None], axis=3)[..., 0],
            ends_BGC=places_BGC == 0,
            lengths_BGC=2 * at.step_B[:, None, None] + 1 - met_BGC,
        )

    def parent_pairs(self, parents_BGK: jax.Array) -> jax.Array:
        return jnp.repeat(parents_BGK.swapaxes(1, 2), 2, axis=2)

    def reading_order(
        self, tokens_BWNT: jax.Array, lengths_BGN: jax.Array, markers: hyps.Markers
    ) -> jax.Array:
        steps = tokens_BWNT.shape[-1]
        place_T = jnp.arange(2 * steps)[None, None]
        lengths_BN1 = lengths_BGN[:, 0, :, None]
        from_left_BNT = place_T < (lengths_BN1 + 1) // 2
        step_BNT = jnp.where(from_left_BNT, place_T, lengths_BN1 - 1 - place_T)
        step_BNT = jnp.clip(step_BNT, 0, steps - 1)
        left_BNT, right_BNT = (
            jnp.take_along_axis(tokens_BWNT[:, way], step_BNT, axis=2) for way in (LEFT, RIGHT)
        )
        output_BNT = jnp.where(from_left_BNT, left_BNT, right_BNT)
        return jnp.where(place_T < lengths_BN1, output_BNT, hyps.PAD)[:, None]

    def _grow(
        self, prices: Prices, at: hyps.At, markers: hyps.Markers
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The best extensions by a token at each end, or by one at the left if the right ends.

        Returns:
            Tokens [B, 2, K, X]; log-probabilities, and whether they may be, [B, K, X].
        """
        # As many as are alive: of each hypothesis one extension ends, and is told apart.
        best = min(self.hypotheses, prices.logits_BPWV.shape[-1])
        may_meet_B = (2 * at.step_B + 1 >= at.min_length) & ~at.last_B
        best_BWKR, tokens_BWKR = _best_of_each(prices, may_meet_B, markers, best)
        # A sum of the entries i and j of two sorted lists comes after (i + 1)(j + 1) - 1 others.
        ranks_RR = (np.arange(best) + 1)[:, None] * (np.arange(best) + 1)[None]
        left_X, right_X = np.nonzero(ranks_RR <= self.hypotheses)
        sums_BKX = best_BWKR[:, LEFT][..., left_X] + best_BWKR[:, RIGHT][..., right_X]
        tokens_BWKX = jnp.stack(
            [tokens_BWKR[:, LEFT][..., left_X], tokens_BWKR[:, RIGHT][..., right_X]], axis=1
        )
        return tokens_BWKX, sums_BKX, sums_BKX > -jnp.inf

    def _end(
        self, prices: Prices, met_BK: jax.Array, at: hyps.At, markers: hyps.Markers
    ) -> tuple[jax.Array, jax.Array]:
        """Log-probabilities of the end, and whether it may come, both [B, K]."""
        left_BK, right_BK = (
            log_probs(
                prices.logits_BPWV[:, :, way, markers.ends[way]],
                prices.greatest_BPW[:, :, way],
                prices.log_sum_BPW[:, :, way],
            )
            for way in (LEFT, RIGHT)
        )
        may_end_B1 = (2 * at.step_B >= at.min_length)[:, None]
        return jnp.where(met_BK, left_BK, left_BK + right_BK), met_BK | may_end_B1


def _best_of_each(
    prices: Prices, may_meet_B: jax.Array, markers: hyps.Markers, best: int
) -> tuple[jax.Array, jax.Array]:
    """The best tokens of each end of each hypothesis, best first.

    At the left, text; at the right the end marker too, where the ends may meet.

    Returns:
        Log-probabilities, -inf where there are fewer, and tokens, both [B, W, K, R].
    """
    batch, hypotheses, ways, _ = prices.logits_BPWV.shape
    # Each hypothesis as a beam of its own, N of them.
    alone = jax.tree.map(lambda x: x.reshape(batch * hypotheses, 1, *x.shape[2:]), prices)
    may_meet_N = jnp.repeat(may_meet_B, hypotheses)

    def allowed(tokens_NW: jax.Array) -> jax.Array:
        way_W = hyps.of_axis(jnp.arange(ways), 1, tokens_NW.ndim)
        is_text_NW = jnp.asarray(markers.text())[way_W, tokens_NW] & (tokens_NW >= 0)
        meets_NW = (way_W == RIGHT) & (tokens_NW == markers.ends[RIGHT])
        return is_text_NW | (meets_NW & hyps.of_axis(may_meet_N, 0, tokens_NW.ndim))

    parts_N1W = alone.greatest_BPW, alone.log_sum_BPW
    masked_J = hyps.masked_blocks(markers.text())
    worth_NWR, _, tokens_NWR = top_k_of_beam(
        alone.logits_BPWV, parts_N1W, log_probs, allowed, masked_J, best
    )
    worth_BKWR, tokens_BKWR = (
        found.reshape(batch, hypotheses, ways, best) for found in (worth_NWR, tokens_NWR)
    )
    return worth_BKWR.swapaxes(1, 2), tokens_BKWR.swapaxes(1, 2)
