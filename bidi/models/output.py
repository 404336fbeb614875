"""From the decoder's states to logits: one product, and what the source makes likelier.

Letters: B batch, E examples of a row (of all rows in `Prior`), W ways, S source steps, D model,
V vocabulary, N any leading axes as one.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from bidi.models.dense import is_faster_transposed, product_by_transposed
from bidi.tokens import FIRST_TEXT_ID

# In place of what has no gradient, as JAX wants it.
_NONE: Any = None


@flax.struct.dataclass
class Prior:
    """What is added to the logits of each state, see `CopyPrior`.

    Attributes:
        scale_V: float32, for each token, where it occurs in the source.
        bias_V: float32, for each token, wherever.
        occurs_EV: bool, the text that occurs in the source of each example.
        example: int32, the example of each state; the shape of the states without their last axis.
    """

    scale_V: jax.Array
    bias_V: jax.Array
    occurs_EV: jax.Array
    example: jax.Array

    def logits(self) -> jax.Array:
        """float32, `example`'s shape and [V]."""
        scale_V, bias_V = (
            x_V.reshape(*(1,) * self.example.ndim, -1) for x_V in (self.scale_V, self.bias_V)
        )
        return bias_V + jnp.where(self.occurs_EV[self.example], scale_V, 0.0)

    def mean_logits(self) -> jax.Array:
        """The mean of `logits` over V, which is known for an example; `example`'s shape."""
        of_words_E = jnp.where(self.occurs_EV, self.scale_V, 0.0).mean(axis=-1)
        return self.bias_V.mean() + of_words_E[self.example]

    def gradient(self, logits_gradient_NV: jax.Array) -> "Prior":
        """Of what has this gradient by the logits of `example` [N], by what is learned."""
        of_words_NV = jnp.where(self.occurs_EV[self.example], logits_gradient_NV, 0.0)
        return Prior(of_words_NV.sum(axis=0), logits_gradient_NV.sum(axis=0), _NONE, _NONE)


@flax.struct.dataclass
class Output:
    """What makes logits of states, see `project`.

    Attributes:
        table_VD: float32.
        prior: None for a model without.
        kernel_DV: the table turned and cast, where that is done already: XLA on a CPU multiplies
            few states with it twice as fast.
    """

    table_VD: jax.Array
    prior: Prior | None = None
    kernel_DV: jax.Array | None = None

    def example(self) -> jax.Array | None:
        """The example of each state, int32 [N] for N of them; None where it is of no matter."""
        return None if self.prior is None else self.prior.example.reshape(-1)

    def occurs(self) -> jax.Array | None:
        """The prior's `occurs_EV`."""
        return None if self.prior is None else self.prior.occurs_EV

    def of_states(self, example: jax.Array | None, occurs_EV: jax.Array | None) -> "Output":
        """For other states, of these examples.

        Args:
            example: see `example`.
            occurs_EV: of all examples, or of those of some rows that the states belong to.
        """
        if self.prior is None or example is None or occurs_EV is None:
            return self
        example %= len(occurs_EV)
        prior = dataclasses.replace(self.prior, occurs_EV=occurs_EV, example=example)
        return dataclasses.replace(self, prior=prior)

    def learned(self) -> "Output":
        """What has a gradient; None in place of all else."""
        if self.prior is None:
            return self
        learned = dataclasses.replace(self.prior, occurs_EV=_NONE, example=_NONE)
        return dataclasses.replace(self, prior=learned)


def project(states_D: jax.Array, output: Output) -> jax.Array:
    """States [..., D] to float32 logits [..., V]: their product with the table, and the prior."""
    logits_V = _product(states_D, output)
    return logits_V if output.prior is None else logits_V + output.prior.logits()


def _product(states_D: jax.Array, output: Output) -> jax.Array:
    if output.kernel_DV is None:
        return _by_table(states_D, output.table_VD)
    operands = states_D, output.table_VD, output.kernel_DV
    rows, is_float32 = math.prod(states_D.shape[:-1]), states_D.dtype == jnp.float32
    # With more rows it is slower: XLA transposes the logits back for each of their readers.
    if is_float32 and is_faster_transposed(rows, output.table_VD, most_rows=32):
        return jax.lax.platform_dependent(*operands, cpu=_by_transposed, default=_by_kernel)
    return _by_kernel(*operands)


def _by_table(states_D: jax.Array, table_VD: jax.Array) -> jax.Array:
    table_VD = table_VD.astype(states_D.dtype)
    return jnp.einsum("...d,vd->...v", states_D, table_VD, preferred_element_type=jnp.float32)


def _by_kernel(states_D: jax.Array, _: jax.Array, kernel_DV: jax.Array) -> jax.Array:
    return jnp.einsum("...d,dv->...v", states_D, kernel_DV, preferred_element_type=jnp.float32)


def _by_transposed(states_D: jax.Array, table_VD: jax.Array, _: jax.Array) -> jax.Array:
    logits_NV = product_by_transposed(states_D.reshape(-1, states_D.shape[-1]), table_VD)
    return logits_NV.reshape(*states_D.shape[:-1], -1)


class CopyPrior(nn.Module):
    """Averages the logits with a learned prior over the words of the source (Su 2019).

    Titles and summaries take their words from the text. The prior of a token is
    `scale * [it occurs in the source] + bias`, each learned for each token.
    """

    vocabulary: int

    @nn.compact
    def __call__(
        self, states_D: jax.Array, occurs_BEV: jax.Array, example: jax.Array
    ) -> tuple[jax.Array, Prior]:
        """Halves: what `project` adds up is then the mean of both.

        Args:
            states_D: [..., D].
            occurs_BEV: see `tokens_of`.
            example: int32, the row and the example that each state belongs to, as one number.
        """
        scale_V = self.param("scale", nn.initializers.ones, (self.vocabulary,))
        bias_V = self.param("bias", nn.initializers.zeros, (self.vocabulary,))
        occurs_EV = occurs_BEV.reshape(-1, self.vocabulary)
        return states_D / 2, Prior(scale_V / 2, bias_V / 2, occurs_EV, example)


def tokens_of(
    source_BS: jax.Array, segments_BS: jax.Array, examples: int, vocabulary: int
) -> jax.Array:
    """Which tokens occur in each example of a row, bool [B, E, V]; markers are none."""
    is_text_BS = (segments_BS != 0) & (source_BS >= FIRST_TEXT_ID)
    # Beyond the last example nothing is set.
    example_BS = jnp.where(is_text_BS, segments_BS - 1, examples)
    rows_B1 = jnp.arange(len(source_BS))[:, None]
    nothing_BEV = jnp.zeros((len(source_BS), examples, vocabulary), bool)
    return nothing_BEV.at[rows_B1, example_BS, source_BS].set(True, mode="drop")
