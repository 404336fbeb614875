"""Dense layers against flax's own, and products by transposed kernels against those by kernels."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bidi.models import dense, output
from bidi.models.dense import (
    LARGE,
    Dense,
    Projections,
    is_faster_transposed,
    product,
    transposed_kernels,
    typed_kernels,
)
from bidi.models.model import decoding_variables
from bidi.models.slots import Room
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
    logits = jax.jit(lambda params: model.apply({"params": params}, batch))
    np.testing.assert_array_equal(logits(cast), logits(params))


@pytest.mark.parametrize(("platform", "turned"), [("cpu", True), ("tpu", False), ("cuda", False)])
def test_the_gradient_of_a_kernel_that_narrows_is_turned_on_a_cpu_alone(platform, turned):
    def loss(params, x):
        return Dense(3).apply(params, x).sum()

    x = jax.ShapeDtypeStruct((7, 5), jnp.float32)
    params = jax.eval_shape(Dense(3).init, jax.random.key(0), x)
    program = jax.jit(jax.grad(loss)).trace(params, x).lower(lowering_platforms=(platform,))
    assert ("tensor<3x5xf32>" in program.as_text()) is turned


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 6, 8, 12, 16, 17, 20, 24, 33, 64, 65])
def test_products_with_transposed_kernels_are_those_with_kernels(monkeypatch, rows):
    """So many rows in two axes, whether they fill vector registers or not."""
    monkeypatch.setattr(dense, "LARGE", 1)
    rng = np.random.default_rng(rows)
    x, kernel_DF = rng.normal(size=(1, rows, 5)), rng.normal(size=(5, 7))
    x, kernel_DF = x.astype("f4"), kernel_DF.astype("f4")
    found = product(x, jnp.full_like(kernel_DF, jnp.nan), kernel_DF.T)
    if 4 <= rows <= 64:
        np.testing.assert_allclose(found, x @ kernel_DF, rtol=1e-5, atol=1e-5)
    else:
        assert np.isnan(found).all()
        np.testing.assert_allclose(product(x, kernel_DF), x @ kernel_DF, rtol=1e-5, atol=1e-5)


def test_transposed_kernels_are_for_some_rows_and_large_kernels():
    def rows_of(features, inputs, **bound):
        kernel_FD = jax.ShapeDtypeStruct((features, inputs), jnp.float32)
        return {rows for rows in range(200) if is_faster_transposed(rows, kernel_FD, **bound)}

    filled = {*range(6, 9), *range(12, 17), *range(24, 33), *range(36, 65)}
    assert rows_of(512, LARGE // 512) == filled
    assert rows_of(512, LARGE // 512 - 1) == set()
    assert rows_of(32 * 512, LARGE // 512) == set(range(4, 65))
    assert rows_of(32 * 512, LARGE // 512, most_rows=32) == set(range(4, 33))


def test_kernels_that_are_not_large_or_not_float32_are_not_transposed():
    """Own decoders' are as large as one of them."""
    half = LARGE // 512
    params = {
        "one": {"kernel": jnp.zeros((512, half)), "bias": jnp.zeros(LARGE)},
        "own": {"inner": {"kernel": jnp.zeros((2, half, 512))}},
        "smaller": {"kernel": jnp.zeros((2, half - 1, 512))},
        "half": {"kernel": jnp.zeros((512, half), jnp.bfloat16)},
        "table": {"embedding": jnp.zeros((512, half))},
    }
    assert jax.tree.map(jnp.shape, transposed_kernels(params)) == {
        "one": {"transposed_kernel": (half, 512)},
        "own": {"inner": {"transposed_kernel": (2, 512, half)}},
    }


@pytest.mark.parametrize(
    "config",
    [
        {"interaction": "layers", "fusion": "gate", "own_decoders": True, "encoder_layers": 1},
        {"interaction": "top", "fusion": "concat", "joint": True, "copy_prior": True},
        {"interaction": "top", "recurrent": True},
    ],
)
def test_a_step_by_transposed_kernels_is_one_by_kernels(monkeypatch, config):
    """And each of them is read. The cache holds something, which recurrent kernels multiply."""
    model = tiny.make_model(**config)
    params = tiny.random_params(model)
    cache = model.bind({}).empty_cache(4, 4, Room(8, 8))
    cache = jax.tree.map(lambda room: room + 3, cache)
    tokens_BPW = np.ones((4, 4, 2), np.int32)
    place = dataclasses.replace(tiny.first_place(4, 4, 8), step_B=np.ones(4, np.int32))

    def logits(variables):
        source = model.apply(variables, tiny.source_batch(np.ones((4, 3))), method="start")
        step = source, cache, tokens_BPW, place
        return model.apply(variables, *step, method="decode_step")[0].logits_BPWV

    plain = decoding_variables(model, params, "cpu")
    assert set(plain["decoding"]) == {"output_kernel"}
    expected = jax.jit(logits)(plain)
    monkeypatch.setattr(dense, "LARGE", 1)
    assert set(decoding_variables(model, params, "tpu")["decoding"]) == {"output_kernel"}
    transposed = decoding_variables(model, params, "cpu")
    found = jax.jit(logits)(transposed)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)

    def squares(decoding):
        return (logits(transposed | {"decoding": decoding}) ** 2).sum()

    gradients = jax.jit(jax.grad(squares))(transposed["decoding"])
    assert not gradients.pop("output_kernel").any()  # it is by the table
    kernels = {path[:-1] for path, _ in jax.tree.leaves_with_path(gradients)}
    assert kernels == {
        path[:-1] for path, _ in jax.tree.leaves_with_path(params) if path[-1].key == "kernel"
    }
    for path, gradient in jax.tree.leaves_with_path(gradients):
        assert abs(gradient).max() > 0, path


@pytest.mark.parametrize(("platform", "by_table"), [("cpu", True), ("tpu", False), ("cuda", False)])
def test_logits_are_by_the_table_as_it_lies_on_a_cpu_alone(monkeypatch, platform, by_table):
    monkeypatch.setattr(dense, "LARGE", 1)
    table_VD = jnp.ones((7, 5))
    program = jax.jit(
        lambda states, table: output.project(states, output.Output(table, kernel_DV=table.T))
    ).trace(jnp.ones((2, 4, 5)), table_VD)
    text = program.lower(lowering_platforms=(platform,)).as_text()
    assert ("tensor<7x8xf32>" in text) is by_table
