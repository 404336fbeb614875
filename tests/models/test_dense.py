"""Dense layers against flax's own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bidi.models.dense import Dense


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_outputs_and_gradients_are_those_of_flax(shape, dtype):
    rng = np.random.default_rng(0)
    x, cotangent = rng.normal(size=shape), rng.normal(size=(*shape[:-1], 7))
    params = nn.Dense(7).init(jax.random.key(0), x)

    def pulled_back(module):
        y, pull = jax.vjp(lambda params, x: module(7, dtype=dtype).apply(params, x), params, x)
        return y, pull(jnp.asarray(cotangent, dtype))

    tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.float32(a), np.float32(b), rtol=tolerance, atol=tolerance
        ),
        pulled_back(Dense),
        pulled_back(nn.Dense),
    )


def test_the_kernels_gradient_needs_no_transposition():
    program = jax.make_jaxpr(jax.grad(lambda params, x: Dense(7).apply(params, x).sum()))(
        Dense(7).init(jax.random.key(0), jnp.ones((3, 5))), jnp.ones((3, 5))
    )
    assert "transpose" not in str(program)
