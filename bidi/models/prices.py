"""What a model tells a search of the next tokens of streams.

Letters: B batch, P pairs, W ways, V vocabulary.
"""

import flax.struct
import jax
import jax.numpy as jnp


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
        greatest_BPW = logits_BPWV.max(axis=-1)
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


def log_probs(logits: jax.Array, greatest: jax.Array, log_sum: jax.Array) -> jax.Array:
    """Those of some of a stream's tokens, by the parts of `Prices`."""
    return (logits - greatest) - log_sum
