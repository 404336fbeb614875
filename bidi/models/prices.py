"""What a model tells a search of the next tokens of streams.

Letters: B batch, P pairs, W ways, V vocabulary, J blocks of L entries of it.
"""

import math

import flax.struct
import jax
import jax.numpy as jnp

BLOCK = 64


@flax.struct.dataclass
class Prices:
    """Log-probabilities in parts: to put them together is a pass over the whole vocabulary.

    Attributes:
        logits_BPWV: float32.
        greatest_BPW: float32, of the logits.
        log_sum_BPW: float32, the logarithm of the sum of exponentials of the logits' differences to
            the greatest.
    """

    logits_BPWV: jax.Array
    greatest_BPW: jax.Array
    log_sum_BPW: jax.Array

    @classmethod
    def of(cls, logits_BPWV: jax.Array) -> "Prices":
        """Those whose log-probabilities are the logits' `log_softmax`."""
        greatest_BPWJ = in_blocks(logits_BPWV).max(axis=-1)
        # A search asks for the greatest of blocks too, see `top_k_of_beam`. XLA would make one pass
        # for these and one for the greatest of all. TPUs have made both with the logits already.
        greatest_BPWJ = jax.lax.platform_dependent(
            greatest_BPWJ, tpu=lambda x_BPWJ: x_BPWJ, default=jax.lax.optimization_barrier
        )
        greatest_BPW = greatest_BPWJ.max(axis=-1)
        return cls(
            logits_BPWV,
            greatest_BPW,
            jnp.log(jnp.exp(logits_BPWV - greatest_BPW[..., None]).sum(axis=-1)),
        )

    def log_probs(self) -> jax.Array:
        """float32 [B, P, W, V], at most 0."""
        return log_probs(
            self.logits_BPWV, self.greatest_BPW[..., None], self.log_sum_BPW[..., None]
        )


def in_blocks(values_V: jax.Array) -> jax.Array:
    """[..., V] -> [..., J, L], L = `BLOCK`; what the last block lacks is -inf."""
    entries = values_V.shape[-1]
    blocks = math.ceil(entries / BLOCK)
    padding = [(0, 0)] * (values_V.ndim - 1) + [(0, blocks * BLOCK - entries)]
    filled = jnp.pad(values_V, padding, constant_values=-jnp.inf)
    return filled.reshape(*values_V.shape[:-1], blocks, BLOCK)


def log_probs(logits: jax.Array, greatest: jax.Array, log_sum: jax.Array) -> jax.Array:
    """Those of some of a stream's tokens, by the parts of `Prices`."""
    return (logits - greatest) - log_sum
