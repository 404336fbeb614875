"""Which streams stand in which pairs.

Letters: B batch, P pairs, K streams of each way, W ways, T steps.
"""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Pairing:
    """Where what a stream writes does not depend on its partner, it is computed once a stream.

    Attributes:
        combined: K, if the pairs are all combinations of K streams of each of two ways: pair p
            holds p // K of the first way and p % K of the second. None: a pair has streams of its
            own, K = P.
    """

    combined: int | None

    def streams(self, x_BPW: jax.Array) -> jax.Array:
        """What is given for each pair, of each stream: [B, P, W, ...] -> [B, K, W, ...]."""
        k = self.combined
        return x_BPW if k is None else jnp.stack([x_BPW[:, ::k, 0], x_BPW[:, :k, 1]], axis=2)

    def pairs(self, x_BKW: jax.Array) -> jax.Array:
        """The reverse: [B, K, W, ...] -> [B, P, W, ...]."""
        k = self.combined
        if k is None:
            return x_BKW
        first, second = x_BKW[:, :, 0], x_BKW[:, :, 1]
        return jnp.stack([jnp.repeat(first, k, axis=1), jnp.concatenate([second] * k, axis=1)], 2)
