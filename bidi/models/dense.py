"""Dense layers, and products with their kernels as a device does them best.

Letters: N any leading axes as one, D input features, F output features, Q layers in one.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bidi.models.axes import constrain, layer_shards

DECODING = "decoding"  # the collection of what a search makes of parameters, once
TRANSPOSED = "transposed_kernel"  # in it, of a dense layer
LARGE = 2**18  # the fewest entries of a kernel that is worth transposing


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


def transposed_kernels(params: dict[str, Any]) -> dict[str, Any]:
    """Of dense layers' large float32 kernels the transposed ones, where layers look for them."""
    transposed = {}
    for name, inner in params.items():
        if isinstance(inner, dict):
            if in_module := transposed_kernels(inner):
                transposed[name] = in_module
        elif name == "kernel" and inner.dtype == jnp.float32 and _size(inner) >= LARGE:
            transposed[TRANSPOSED] = inner.swapaxes(-1, -2)
    return transposed


def _size(kernel_DF: jax.Array) -> int:
    """Entries of one kernel: of own decoders there are several in one array."""
    return kernel_DF.shape[-2] * kernel_DF.shape[-1]


def product(
    x: jax.Array, kernel_DF: jax.Array, transposed_FD: jax.Array | None = None
) -> jax.Array:
    """[..., D] x [D, F] -> [..., F], by the transposed kernel, if given, where that is faster."""
    x_ND = x.reshape(-1, x.shape[-1])
    if transposed_FD is not None and is_faster_transposed(len(x_ND), transposed_FD):
        y_NF = product_by_transposed(x_ND, transposed_FD)
    else:
        y_NF = matrix_product(x_ND, kernel_DF)
    return y_NF.reshape(*x.shape[:-1], -1)


def is_faster_transposed(rows: int, transposed_FD: jax.Array, most_rows: int = 64) -> bool:
    """Whether a CPU multiplies so many rows with the transposed kernel faster: a few.

    XLA packs the second operand in every product. Of few rows that is most of the time, if it is a
    large kernel: transposed, it is the first operand and read as it lies. With 8 to 64 rows and the
    kernels of Transformer base it takes 0.45 to 0.9 of the time. Measured on a Xeon with AVX-512,
    one core.
    """
    size = _size(transposed_FD)
    # Lanes that rows do not fill are multiplied in vain, which may be a third more. Of the largest,
    # as of an output of 32,000 tokens, it may be more yet: reading it takes longer.
    fill = 3 * _filled(rows) <= 4 * rows or size >= 32 * LARGE
    return size >= LARGE and fill and 4 <= rows <= most_rows


def product_by_transposed(x_ND: jax.Array, transposed_FD: jax.Array) -> jax.Array:
    """[N, D] x [F, D] -> [N, F]. Behind barriers, or XLA would swap the operands back."""
    rows = len(x_ND)
    x_DN = jnp.pad(x_ND, ((0, _filled(rows) - rows), (0, 0))).T
    y_FN = transposed_FD @ jax.lax.optimization_barrier(x_DN)
    return jax.lax.optimization_barrier(y_FN)[:, :rows].T


def _filled(rows: int) -> int:
    """As many as fill whole vector registers of 16 lanes, or half of one."""
    multiple = 8 if rows <= 8 else 16
    return -(-rows // multiple) * multiple


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


class Dense(nn.Module):
    """`nn.Dense` by `product`.

    Attributes:
        features: F.
        use_bias: whether a bias is added.
        dtype: of the product; None: as inputs and parameters have it.
        bias_init: of the bias.
    """

    features: int
    use_bias: bool = True
    dtype: jnp.dtype | None = None
    bias_init: nn.initializers.Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., F]."""
        init = nn.initializers.lecun_normal()
        kernel = self.param("kernel", init, (x.shape[-1], self.features), jnp.float32)
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = product(x, kernel, self.get_variable(DECODING, TRANSPOSED))
        return y if bias is None else y + bias.reshape(*(1,) * (x.ndim - 1), -1)


class Projections(nn.Module):
    """Several dense layers of one input as one product, whose results are divided by heads.

    Where a mesh divides layers, a device's share of the whole kernel would be the columns of one or
    two layers; for the product it is divided anew, so that each device has its share of every
    layer. To move kernels costs less than to move what they are multiplied with.

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
            y = product(x, kernel, self.get_variable(DECODING, TRANSPOSED)) + bias.reshape(
                *leading, -1
            )
            return jnp.split(y, self.layers, axis=-1)
        kernel_DQF = constrain(kernel.reshape(-1, self.layers, self.size), None, None, "heads")
        bias_QF = constrain(bias.reshape(self.layers, self.size), None, "heads")
        y = jnp.einsum("...d,dqf->...qf", x, kernel_DQF) + bias_QF.reshape(*leading, *bias_QF.shape)
        return [y[..., layer, :] for layer in range(self.layers)]
