"""A recurrent layer that begins anew with every example of a packed row.

Letters: B batch, P pairs, T steps, D input features, H state features, F of the four gates.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from bidi.models.axes import constrain
from bidi.models.dense import DECODING, TRANSPOSED, Dense, product

Carry = tuple[jax.Array, jax.Array]


class LSTM(nn.Module):
    """Long short-term memory, along the axis T (Gers et al. 2000, with the forget gate open first).

    Attributes:
        size: H.
    """

    size: int

    @nn.compact
    def __call__(
        self, x_BPTD: jax.Array, begins_BPT: jax.Array, carry: Carry | None
    ) -> tuple[jax.Array, Carry]:
        """States of all steps.

        Args:
            x_BPTD: what is read at each step.
            begins_BPT: bool, where nothing is remembered of the step before.
            carry: the state and the cell [B, P, H] of the step before the first; None: nothing.

        Returns:
            States [B, P, T, H], and what the last step carries on.
        """
        gates_BPTF = Dense(4 * self.size, bias_init=_forget_nothing, name="input")(x_BPTD)
        gates_BPTF = constrain(gates_BPTF, "rows")
        kernel_HF = self.param("kernel", _orthogonal, (self.size, 4 * self.size))
        kernel_HF = constrain(kernel_HF)  # whole before the loop, not in each of its steps
        transposed_FH: jax.Array | None = self.get_variable(DECODING, TRANSPOSED)

        def step(carry: Carry, at_step: tuple[jax.Array, jax.Array]) -> tuple[Carry, jax.Array]:
            gates_BPF, begins_BP = at_step
            state_BPH, cell_BPH = (jnp.where(begins_BP[..., None], 0.0, x) for x in carry)
            gates_BPF += product(state_BPH, kernel_HF, transposed_FH)
            write_BPH, forget_BPH, show_BPH = jnp.split(
                nn.sigmoid(gates_BPF[..., : 3 * self.size]), 3, axis=-1
            )
            new_BPH = jnp.tanh(gates_BPF[..., 3 * self.size :])
            cell_BPH = forget_BPH * cell_BPH + write_BPH * new_BPH
            state_BPH = show_BPH * jnp.tanh(cell_BPH)
            return (state_BPH, cell_BPH), state_BPH

        nothing_BPH = jnp.zeros((*x_BPTD.shape[:2], self.size), x_BPTD.dtype)
        first = (nothing_BPH, nothing_BPH) if carry is None else carry
        in_time = jnp.moveaxis(gates_BPTF, 2, 0), jnp.moveaxis(begins_BPT, 2, 0)
        last, states_TBPH = jax.lax.scan(step, first, in_time)
        return constrain(jnp.moveaxis(states_TBPH, 0, 2), "rows"), last


def _orthogonal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """`orthogonal`, of several ways one after the other.

    Of a batch of matrices, jaxlib's QR on a CPU waits for threads of the pool that it runs in: with
    a virtual device a core, each of them for the others, for ever.
    """
    draw = jax.custom_batching.sequential_vmap(
        lambda key: nn.initializers.orthogonal()(key, shape, jnp.float32)
    )
    kernel: jax.Array = draw(key)
    return kernel


def _forget_nothing(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """1 for the second gate, by which the cell is kept (Jozefowicz et al. 2015)."""
    del key
    return jnp.repeat(jnp.array([0.0, 1.0, 0.0, 0.0], dtype), shape[0] // 4)


def begins(segments_T: jax.Array) -> jax.Array:
    """Where an example begins, or padding: bool, along the last axis as `segments_T`."""
    before_T = jnp.roll(segments_T, 1, axis=-1).at[..., 0].set(-1)
    return segments_T != before_T
