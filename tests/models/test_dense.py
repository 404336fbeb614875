"""Dense layers against flax's own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bidi.models.dense import Dense, Projections, typed_kernels
from tests.models import tiny


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("features", [7, 3])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_outputs_and_gradients_are_those_of_flax(shape, features, dtype):
    rng = np.random.default_rng(0)
    x, cotangent = rng.normal(size=shape), rng.normal(size=(*shape[:-1], features))
    params = nn.Dense(features).init(jax.random.key(0), x)

    def pulled_back(module):
        y, pull = jax.vjp(
            lambda params, x: module(features, dtype=dtype).apply(params, x), params, x
        )
        return y, pull(jnp.asarray(cotangent, dtype))

    tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.float32(a), np.float32(b), rtol=tolerance, atol=tolerance
        ),
        pulled_back(Dense),
        pulled_back(nn.Dense),
    )


def test_the_gradient_of_a_kernel_that_widens_needs_no_transposition():
    program = jax.make_jaxpr(jax.grad(lambda params, x: Dense(7).apply(params, x).sum()))(
        Dense(7).init(jax.random.key(0), jnp.ones((3, 5))), jnp.ones((3, 5))
    )
    assert "transpose" not in str(program)


def test_projections_are_one_layer_with_its_results_apart():
    x = np.random.default_rng(0).normal(size=(2, 3, 5)).astype("f4")
    found, params = Projections(3, 4).init_with_output(jax.random.key(1), x)
    expected, one = Dense(12).init_with_output(jax.random.key(1), x)
    jax.tree.map(np.testing.assert_array_equal, params, one)
    np.testing.assert_array_equal(np.concatenate(found, axis=-1), expected)


@pytest.mark.parametrize(
    "config",
    [
        {"interaction": "layers", "fusion": "gate", "own_decoders": True, "encoder_layers": 1},
        {"interaction": "layers", "fusion": "concat", "norm": "post", "copy_prior": True},
        {"interaction": "top", "tied_embeddings": False},
    ],
)
def test_kernels_that_are_cast_once_change_nothing(config):
    model = tiny.make_model(dtype="bfloat16", joint="copy_prior" in config, **config)
    params = tiny.random_params(model)
    cast = typed_kernels(params, jnp.dtype("bfloat16"))

    def of_layers(path, leaf):
        names = [part.key for part in path]
        of_layer = not {"scale", "embedding", "prior"} & set(names) and "norm" not in names[-2]
        assert leaf.dtype == (jnp.bfloat16 if of_layer else jnp.float32), names

    jax.tree_util.tree_map_with_path(of_layers, cast)
    streams = np.ones((2, 2, 3), np.int32)
    batch = tiny.source_batch([[1, 1, 1, 1], [1, 1, 0, 0]])
    batch |= {"inputs": streams * 5, "segments": streams, "positions": tiny.positions(streams)}
    logits = tiny.quick_jit(lambda params: model.apply({"params": params}, batch))
    np.testing.assert_array_equal(logits(cast), logits(params))


@pytest.mark.parametrize(("platform", "turned"), [("cpu", True), ("tpu", False), ("cuda", False)])
def test_the_gradient_of_a_kernel_that_narrows_is_turned_on_a_cpu_alone(platform, turned):
    def loss(params, x):
        return Dense(3).apply(params, x).sum()

    x = jax.ShapeDtypeStruct((7, 5), jnp.float32)
    params = jax.eval_shape(Dense(3).init, jax.random.key(0), x)
    program = jax.jit(jax.grad(loss)).trace(params, x).lower(lowering_platforms=(platform,))
    assert ("tensor<3x5xf32>" in program.as_text()) is turned
