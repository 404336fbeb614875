"""Dense layers, and their gradient without transposed copies of what it is made of.

Letters: N any leading axes as one, D input features, F output features, Q layers in one.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bidi.models.axes import constrain, layer_shards


def typed_kernels(params: Any, dtype: jnp.dtype) -> Any:
    """Parameters with the kernels and biases of dense layers cast to the dtype of activations.

    A layer casts them by itself wherever it is called. For a GPU XLA leaves that in a loop, each
    round of which then starts a kernel more for each layer, and reads twice as much.
    """
    if not isinstance(params, dict):
        return params
    if "kernel" in params:
        return jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    return {name: typed_kernels(inner, dtype) for name, inner in params.items()}


@jax.custom_vjp
def matrix_product(x_ND: jax.Array, kernel_DF: jax.Array) -> jax.Array:
    """[N, D] x [D, F] -> [N, F].

    Its kernel's gradient contracts both operands over N as they lie in memory. The gradient that
    JAX derives is a product that gives [F, D], transposed after: XLA on a CPU makes of it a copy of
    the cotangent and a product at a third of the speed.
    """
    return jax.lax.dot_general(x_ND, kernel_DF, (((1,), (0,)), ((), ())))


def _forward(x_ND: jax.Array, kernel_DF: jax.Array) -> tuple[jax.Array, tuple]:
    return matrix_product(x_ND, kernel_DF), (x_ND, kernel_DF)


def _backward(saved: tuple, cotangent_NF: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_ND, kernel_DF = saved
    x_cotangent_ND = jax.lax.dot_general(cotangent_NF, kernel_DF, (((1,), (1,)), ((), ())))
    return x_cotangent_ND, _over_tokens(x_ND, cotangent_NF)


def _over_tokens(x_ND: jax.Array, y_NF: jax.Array) -> jax.Array:
    """[D, F], the product over N.

    XLA on a CPU takes twice as long where D is the larger: there it is made the other way round and
    turned. Elsewhere that would be a kernel's gradient written and read once more.
    """
    if x_ND.shape[1] <= y_NF.shape[1]:
        return _contract(x_ND, y_NF)
    return jax.lax.platform_dependent(x_ND, y_NF, cpu=_turned, default=_contract)


def _turned(x_ND: jax.Array, y_NF: jax.Array) -> jax.Array:
    """Behind a barrier, or XLA would swap the two back."""
    return jax.lax.optimization_barrier(_contract(y_NF, x_ND)).T


def _contract(x_ND: jax.Array, y_NF: jax.Array) -> jax.Array:
    return jax.lax.dot_general(x_ND, y_NF, (((0,), (0,)), ((), ())))


matrix_product.defvjp(_forward, _backward)


def _dot_general(x: jax.Array, kernel_DF: jax.Array, *_: Any, **__: Any) -> jax.Array:
    """What `nn.Dense` asks of `lax.dot_general`: [..., D] x [D, F] -> [..., F]."""
    y_NF = matrix_product(x.reshape(-1, x.shape[-1]), kernel_DF)
    return y_NF.reshape(*x.shape[:-1], -1)


class Dense(nn.Dense):
    """`nn.Dense` by `matrix_product`."""

    dot_general: Any = _dot_general


class Projections(nn.Module):
    """Several dense layers of one input as one product, whose results are divided by heads.

    Where a mesh divides layers, a device has the kernel's columns as they lie, all of them of one
    or two layers; for the product it takes its share of every layer's. Kernels are smaller than
    what they are multiplied with.

    Attributes:
        layers: Q.
        size: F, of each.
        dtype: of the product.
    """

    layers: int
    size: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        """[..., D] -> of each layer [..., F]; parameters are those of one `Dense`, [D, Q * F]."""
        features, leading = self.layers * self.size, (1,) * (x.ndim - 1)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], features))
        bias = self.param("bias", nn.initializers.zeros_init(), (features,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        if layer_shards() == 1:
            y = _dot_general(x, kernel) + bias.reshape(*leading, -1)
            return jnp.split(y, self.layers, axis=-1)
        kernel_DQF = constrain(kernel.reshape(-1, self.layers, self.size), None, None, "heads")
        bias_QF = constrain(bias.reshape(self.layers, self.size), None, "heads")
        y = jnp.einsum("...d,dqf->...qf", x, kernel_DQF) + bias_QF.reshape(*leading, *bias_QF.shape)
        return [y[..., layer, :] for layer in range(self.layers)]
