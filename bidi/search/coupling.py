"""How hypotheses of the two directions are combined into the pairs that a model runs.

Letters: B batch, P pairs, W ways, G beams, K hypotheses a beam, V vocabulary, N n-best, T steps.
"""

import dataclasses
from typing import Literal, Protocol

import jax
import jax.numpy as jnp

from bidi.models.prices import Prices
from bidi.search import hypotheses as hyps
from bidi.search.joint import Joint

CouplingName = Literal["none", "paired", "product", "joint"]
PartnerWeights = Literal["equal", "score"]


class Coupling(Protocol):
    """What stands in a beam, and the way between beams and pairs."""

    @property
    def hypotheses(self) -> int:
        """K, the alive hypotheses of each beam."""

    @property
    def streams_of_hypothesis(self) -> int:
        """Streams of a hypothesis: 1, or 2 that together are one output."""

    @property
    def pairs(self) -> int:
        """P, the pairs that the model runs."""

    @property
    def combined(self) -> int | None:
        """K, if pairs are all combinations of K streams of each way; None: each has its own."""

    def to_pairs(self, values_BWK: jax.Array) -> jax.Array:
        """A value of each hypothesis, laid out [B, P, W] by the pairs they stand in."""

    def candidates(
        self, alive: hyps.Alive, prices: Prices, at: hyps.At, markers: hyps.Markers
    ) -> hyps.Candidates:
        """The 2K best extensions of each beam."""

    def parent_pairs(self, parents_BGK: jax.Array) -> jax.Array:
        """The old pair whose history each way of a new pair goes on with, int32 [B, P, W]."""

    def reading_order(
        self, tokens_BWNT: jax.Array, lengths_BGN: jax.Array, markers: hyps.Markers
    ) -> jax.Array:
        """Outputs [B, G, N, ...] of so many tokens from what was written, PAD behind their end."""


class _Apart:
    """Each way has a beam of its own, whose hypotheses are whole outputs."""

    streams_of_hypothesis = 1

    def candidates(
        self, alive: hyps.Alive, prices: Prices, at: hyps.At, markers: hyps.Markers
    ) -> hyps.Candidates:
        prices = self.of_hypotheses(prices, alive.log_probs_BGK)
        ends_W1 = jnp.array(markers.ends, jnp.int32)[:, None]
        log_probs_BWC, parents_BWC, tokens_BWC = hyps.best_tokens(alive, prices, at, markers)
        return hyps.Candidates(
            log_probs_BWC,
            parents_BWC,
            tokens_BWC,
            ends_BGC=tokens_BWC == ends_W1[None],
            lengths_BGC=jnp.broadcast_to((at.step_B + 1)[:, None, None], tokens_BWC.shape),
        )

    def reading_order(
        self, tokens_BWNT: jax.Array, lengths_BGN: jax.Array, markers: hyps.Markers
    ) -> jax.Array:
        steps_T = jnp.arange(tokens_BWNT.shape[-1])[None, None, None]
        lengths_BWN1 = lengths_BGN[..., None]
        from_right_W = jnp.array([way == "r2l" for way in markers.directions])[None, :, None, None]
        index_BWNT = jnp.where(from_right_W, lengths_BWN1 - 1 - steps_T, steps_T)
        written_BWNT = jnp.take_along_axis(tokens_BWNT, jnp.maximum(index_BWNT, 0), axis=3)
        return jnp.where(steps_T < lengths_BWN1, written_BWNT, hyps.PAD)

    def of_hypotheses(self, prices: Prices, alive_BWK: jax.Array) -> Prices:
        """The prices of K hypotheses, from those of P pairs.

        `alive_BWK` are their log-probabilities so far, -inf for the dead.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class ByRank(_Apart):
    """The k-th hypothesis of one direction beside the k-th of the other (SB-NMT).

    Where the streams do not read each other (coupling `none`) a pair is only a place in the batch.
    After a new ranking a stream's cache stays its own, though deeper entries were computed beside
    a former partner: the approximation that SB-NMT makes. It is exact where a stream's keys and
    values do not depend on its partner: interaction `none` or `top`, or one decoder layer.
    """

    hypotheses: int
    combined = None

    @property
    def pairs(self) -> int:
        return self.hypotheses

    def to_pairs(self, values_BWK: jax.Array) -> jax.Array:
        return values_BWK.swapaxes(1, 2)

    def of_hypotheses(self, prices: Prices, alive_BWK: jax.Array) -> Prices:
        return prices

    def parent_pairs(self, parents_BWK: jax.Array) -> jax.Array:
        return parents_BWK.swapaxes(1, 2)


@dataclasses.dataclass(frozen=True)
class Product(_Apart):
    """Every L2R x R2L combination; a token's probability is the mean over the partners (Su 2019).

    In the mean the partners count alike, or (`score`) by their own probabilities so far.

    Pair p holds L2R hypothesis p // K and R2L hypothesis p % K. The pair of two parents was itself
    run a step before, so a pair's cache is always exactly that of its two prefixes.
    """

    hypotheses: int
    partner_weights: PartnerWeights = "equal"

    @property
    def pairs(self) -> int:
        return self.hypotheses**2

    @property
    def combined(self) -> int:
        return self.hypotheses

    def to_pairs(self, values_BWK: jax.Array) -> jax.Array:
        left_P, right_P = divmod(jnp.arange(self.pairs), self.hypotheses)
        return jnp.stack([values_BWK[:, 0, left_P], values_BWK[:, 1, right_P]], axis=-1)

    def of_hypotheses(self, prices: Prices, alive_BWK: jax.Array) -> Prices:
        k = self.hypotheses
        batch, _, *shape_WV = prices.logits_BPWV.shape
        log_probs_BKKWV = prices.log_probs().reshape(batch, k, k, *shape_WV)
        scores_BWK = alive_BWK
        if self.partner_weights == "equal":
            scores_BWK = jnp.where(alive_BWK > -jnp.inf, 0.0, -jnp.inf)
        left_BKV = _log_mean(log_probs_BKKWV[..., 0, :], scores_BWK[:, 1, None, :, None], axis=2)
        right_BKV = _log_mean(log_probs_BKKWV[..., 1, :], scores_BWK[:, 0, :, None, None], axis=1)
        mean_BKWV = jnp.stack([left_BKV, right_BKV], axis=2)
        nothing_BKW = jnp.zeros(mean_BKWV.shape[:3])
        return Prices(mean_BKWV, nothing_BKW, nothing_BKW)

    def parent_pairs(self, parents_BWK: jax.Array) -> jax.Array:
        parents_BPW = self.to_pairs(parents_BWK)
        parents_BP = parents_BPW[..., 0] * self.hypotheses + parents_BPW[..., 1]
        return jnp.stack([parents_BP, parents_BP], axis=-1)


def _log_mean(log_probs: jax.Array, scores: jax.Array, axis: int) -> jax.Array:
    """Log of the mean probability along an axis, by the softmax of the scores; at most 0."""
    weighted = log_probs + jax.nn.log_softmax(scores, axis=axis)
    # Of a dead hypothesis the log-probability may be anything.
    mean = jax.nn.logsumexp(jnp.where(scores > -jnp.inf, weighted, -jnp.inf), axis=axis)
    # The search's bound relies on a mean of at most 1, above which rounding may lift it.
    return jnp.minimum(mean, 0.0)


def make_coupling(
    name: CouplingName, beam_size: int, ways: int, partner_weights: PartnerWeights = "equal"
) -> Coupling:
    """The coupling of a name.

    Args:
        name: `none`, `paired`, `product` or `joint`.
        beam_size: hypotheses of each beam; of both together for `paired`.
        ways: 1 or 2 directions.
        partner_weights: see `Product`.

    Raises:
        ValueError: the name needs two directions, or an even beam.
    """
    if name == "none":
        return ByRank(beam_size)
    if ways != 2:
        raise ValueError(
            f"Search.coupling = {name!r} needs a model of two directions, this one has {ways}; "
            "use 'none'"
        )
    if name == "product":
        return Product(beam_size, partner_weights)
    if name == "joint":
        return Joint(beam_size)
    if beam_size % 2:
        raise ValueError(
            f"Search.beam_size = {beam_size} is odd, but coupling 'paired' gives each direction "
            "half of the beam; use an even number"
        )
    return ByRank(beam_size // 2)
