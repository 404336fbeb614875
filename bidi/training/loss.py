"""Label-smoothed cross-entropy as sums, to be divided once over all devices.

Letters: B batch, W ways, T target steps, N tokens of a batch or of a chunk, D model, V vocabulary.
"""

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp

from bidi.models.axes import constrain
from bidi.models.output import Output, project
from bidi.training.chunks import scan_chunks


@flax.struct.dataclass
class LossSums:
    """Sums over labels; add them over devices and microbatches, then divide.

    Attributes:
        loss: float32, what is optimised.
        nll_W: float32, negative log-likelihood of each direction's labels, in nats.
        correct_W: float32, labels that no token is more likely than.
        tokens_W: float32, labels.
    """

    loss: jax.Array
    nll_W: jax.Array
    correct_W: jax.Array
    tokens_W: jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def cross_entropy(
    states_BWTD: jax.Array,
    output: Output,
    labels_BWT: jax.Array,
    weights_BWT: jax.Array,
    smoothing: float,
) -> LossSums:
    """The loss of a batch; its logits [B, W, T, V] never exist whole.

    They are made and used chunk by chunk. Where a gradient is asked for, it is made with them: the
    loss is a sum, so a logit's gradient is known as soon as its row of logits is.

    Args:
        states_BWTD: the decoder's last states, of any float dtype, which the products are made in.
        output: makes the logits of them, see `project`.
        labels_BWT: int32.
        weights_BWT: float32, 0 where there is no loss.
        smoothing: probability spread evenly over the vocabulary (Szegedy et al. 2016, section 7).

    Returns:
        Sums over the batch; mean loss over both directions is `loss / tokens_W.sum()`. Only `loss`
        has a gradient, with respect to states and output.
    """
    sums, _ = _in_chunks(states_BWTD, output, labels_BWT, weights_BWT, smoothing, False)
    return sums


def _forward(
    states_BWTD: jax.Array,
    output: Output,
    labels_BWT: jax.Array,
    weights_BWT: jax.Array,
    smoothing: float,
) -> tuple[LossSums, tuple | None]:
    return _in_chunks(states_BWTD, output, labels_BWT, weights_BWT, smoothing, True)


def _backward(smoothing: float, gradient: tuple, cotangent: LossSums) -> tuple:
    states_BWTD, output = jax.tree.map(
        lambda leaf: leaf * cotangent.loss.astype(leaf.dtype), gradient
    )
    return states_BWTD, output, None, None


cross_entropy.defvjp(_forward, _backward)


def _in_chunks(
    states_BWTD: jax.Array,
    output: Output,
    labels_BWT: jax.Array,
    weights_BWT: jax.Array,
    smoothing: float,
    with_gradient: bool,
) -> tuple[LossSums, tuple[jax.Array, Output] | None]:
    """The sums, and the gradient of their loss by states and output if asked for."""
    # Whole along D before the loop, not in each of its steps.
    table_VD = constrain(output.table_VD.astype(states_BWTD.dtype), "vocabulary")
    typed = dataclasses.replace(output, table_VD=table_VD)
    mean_D = table_VD.mean(axis=0, dtype=jnp.float32)

    def add_chunk(occurs_EV, chunk):
        states_ND, labels_N, weights_N, example_N = chunk
        output_of_chunk = typed.of_states(example_N, occurs_EV)
        table_VD, prior = output_of_chunk.table_VD, output_of_chunk.prior
        terms, logits_gradient_NV = _chunk_loss(
            states_ND, labels_N, weights_N, output_of_chunk, mean_D, smoothing, with_gradient
        )
        if logits_gradient_NV is None:
            return None, (terms, None)
        prior_gradient = prior and prior.gradient(logits_gradient_NV)
        logits_gradient_NV = logits_gradient_NV.astype(table_VD.dtype)
        states_gradient_ND = logits_gradient_NV @ table_VD
        table_gradient_VD = jax.lax.dot_general(
            logits_gradient_NV,
            states_ND,
            (((0,), (0,)), ((), ())),
            preferred_element_type=jnp.float32,
        )
        return Output(table_gradient_VD, prior_gradient), (terms, states_gradient_ND)

    zero = jax.tree.map(jnp.zeros_like, output.learned()) if with_gradient else None
    tokens = (
        states_BWTD.reshape(-1, states_BWTD.shape[-1]),
        labels_BWT.reshape(-1),
        weights_BWT.reshape(-1),
        output.example(),
    )
    output_gradient, (terms, states_gradient_ND) = scan_chunks(
        add_chunk, zero, tokens, output.occurs()
    )
    loss_BWT, nll_BWT, correct_BWT = (term.reshape(labels_BWT.shape) for term in terms)
    sums = LossSums(
        loss=loss_BWT.sum(),
        nll_W=nll_BWT.sum(axis=(0, 2)),
        correct_W=correct_BWT.sum(axis=(0, 2)),
        tokens_W=weights_BWT.sum(axis=(0, 2)),
    )
    if output_gradient is None:
        return sums, None
    return sums, (states_gradient_ND.reshape(states_BWTD.shape), output_gradient)


def _chunk_loss(
    states_ND: jax.Array,
    labels_N: jax.Array,
    weights_N: jax.Array,
    output: Output,
    mean_D: jax.Array,
    smoothing: float,
    with_gradient: bool,
) -> tuple[tuple[jax.Array, ...], jax.Array | None]:
    """Weighted loss, likelihood and hits of each token; the loss's gradient by logits [N, V].

    `mean_D` is that of the table's rows: its product with a state is the mean of the state's
    logits, without a pass over them.
    """
    logits_NV = project(states_ND, output)
    vocabulary = logits_NV.shape[-1]
    highest_N1 = logits_NV.max(axis=-1, keepdims=True)
    unnormalised_NV = jnp.exp(logits_NV - highest_N1)
    total_N = unnormalised_NV.sum(axis=-1)
    normaliser_N = highest_N1[:, 0] + jnp.log(total_N)
    label_logits_N = jnp.take_along_axis(logits_NV, labels_N[:, None], axis=-1)[:, 0]
    nll_N = normaliser_N - label_logits_N
    mean_logits_N = jnp.matmul(states_ND.astype(jnp.float32), mean_D, precision="highest")
    if output.prior is not None:
        mean_logits_N += output.prior.mean_logits()
    uniform_N = normaliser_N - mean_logits_N
    loss_N = (1 - smoothing) * nll_N + smoothing * uniform_N
    # Not by argmax, which costs XLA on a CPU as much as the product.
    correct_N = label_logits_N >= highest_N1[:, 0]
    terms = (loss_N * weights_N, nll_N * weights_N, correct_N * weights_N)
    if not with_gradient:
        return terms, None
    is_label_NV = jnp.arange(vocabulary)[None] == labels_N[:, None]
    wanted_NV = jnp.where(is_label_NV, 1 - smoothing, 0.0) + smoothing / vocabulary
    probabilities_NV = unnormalised_NV / total_N[:, None]
    return terms, (probabilities_NV - wanted_NV) * weights_N[:, None]
