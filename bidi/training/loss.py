"""Label-smoothed cross-entropy as sums, to be divided once over all devices.

Letters: B batch, W ways, T target steps, V vocabulary.
"""

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class LossSums:
    """Sums over labels; add them over devices and microbatches, then divide.

    Attributes:
        loss: float32, what is optimised.
        nll_W: float32, negative log-likelihood of each direction's labels, in nats.
        correct_W: float32, labels that were the model's first choice.
        tokens_W: float32, labels.
    """

    loss: jax.Array
    nll_W: jax.Array
    correct_W: jax.Array
    tokens_W: jax.Array


def cross_entropy(
    logits_BWTV: jax.Array, labels_BWT: jax.Array, weights_BWT: jax.Array, smoothing: float
) -> LossSums:
    """The loss of a batch.

    Args:
        logits_BWTV: float32.
        labels_BWT: int32.
        weights_BWT: float32, 0 where there is no loss.
        smoothing: probability spread evenly over the vocabulary (Szegedy et al. 2016, section 7).

    Returns:
        Sums over the batch; mean loss over both directions is `loss / tokens_W.sum()`.
    """
    normaliser_BWT = jax.nn.logsumexp(logits_BWTV, axis=-1)
    label_logits_BWT = jnp.take_along_axis(logits_BWTV, labels_BWT[..., None], axis=-1)[..., 0]
    nll_BWT = normaliser_BWT - label_logits_BWT
    uniform_BWT = normaliser_BWT - logits_BWTV.mean(axis=-1)
    loss_BWT = (1 - smoothing) * nll_BWT + smoothing * uniform_BWT
    correct_BWT = logits_BWTV.argmax(axis=-1) == labels_BWT
    return LossSums(
        loss=(loss_BWT * weights_BWT).sum(),
        nll_W=(nll_BWT * weights_BWT).sum(axis=(0, 2)),
        correct_W=(correct_BWT * weights_BWT).sum(axis=(0, 2)),
        tokens_W=weights_BWT.sum(axis=(0, 2)),
    )
