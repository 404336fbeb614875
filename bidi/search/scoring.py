"""Length penalties, and the bound by which a search knows that it is done.

Letters: B batch, G beams, K hypotheses a beam.
"""

from typing import Literal

import jax
import jax.numpy as jnp

Penalty = Literal["gnmt", "plain"]


def length_penalty(length: jax.Array, kind: Penalty, alpha: float) -> jax.Array:
    """What a log-probability is divided by.

    Args:
        length: of an output (tokens, and the end marker if there is one), at least 1.
        kind: `gnmt`, ((5 + n) / 6)^alpha (Wu et al. 2016, section 7), or `plain`, n^alpha.
        alpha: any sign; 0 leaves the log-probability as it is.

    Returns:
        float32, the shape of `length`.
    """
    length = length.astype(jnp.float32)
    base = (5.0 + length) / 6.0 if kind == "gnmt" else length
    return base**alpha


def best_reachable_score(
    alive_log_probs_BGK: jax.Array,
    next_length_B: jax.Array,
    max_length_B: jax.Array,
    kind: Penalty,
    alpha: float,
) -> jax.Array:
    """An upper bound [B, G] of the score of whatever the alive hypotheses can become.

    Log-probabilities only fall as a hypothesis grows, so none ends above that of the best alive
    one, a <= 0; and a / penalty(n) is monotone in n: with alpha >= 0 the greatest length that is
    allowed is the kindest, with alpha < 0 the smallest that is still to come.
    """
    kindest_B = max_length_B if alpha >= 0 else jnp.minimum(next_length_B, max_length_B)
    penalty_B = length_penalty(jnp.maximum(kindest_B, 1), kind, alpha)
    return alive_log_probs_BGK.max(axis=-1) / penalty_B[:, None]
