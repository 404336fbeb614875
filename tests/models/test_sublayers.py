import flax.linen as nn
import jax
import numpy as np
import pytest

from bidi.benchmarking import hlo_text
from bidi.models.sublayers import LayerNorm, sinusoidal_positions
from tests.models import tiny


def test_positions_are_those_of_the_paper():
    """Sin and cos of pos / 10000^(2i / D); sines first, which is the same up to an order."""
    positions_BT = np.array([[0, 1, 2], [7, 500, 0]])
    size = 12
    i = np.arange(size // 2)
    angles = positions_BT[..., None] / 10_000 ** (2 * i / size)
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
    found = sinusoidal_positions(positions_BT, size)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_norm_is_that_of_flax():
    x, cotangent = np.random.default_rng(0).normal(size=(2, 2, 1, 1, 3, 4)).astype("f4")
    params = nn.LayerNorm().init(jax.random.key(0), x)

    def pulled_back(module):
        y, pull = jax.vjp(module.apply, params, x)
        return y, pull(cotangent)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        pulled_back(LayerNorm()),
        pulled_back(nn.LayerNorm()),
    )


@pytest.mark.parametrize(
    ("norm", "config"),
    [
        ("post", {"interaction": "layers"}),
        ("pre", {"own_decoders": True}),
    ],
)
def test_nothing_is_computed_anew_from_the_first_layer_on(norm, config):
    """No fusion grows with the layers: who reads a sum computes neither it nor its masks anew."""
    segments = np.ones((2, config.get("ways", 2), 4), np.int32)
    batch = tiny.source_batch(np.ones((2, 3), np.int32))
    batch |= {"inputs": segments * 5, "segments": segments, "positions": segments}

    def most_instructions(layers):
        model = tiny.make_model(decoder_layers=layers, norm=norm, dropout=0.1, **config)

        def loss(params):
            rngs = {"dropout": jax.random.key(1)}
            return (model.apply({"params": params}, batch, train=True, rngs=rngs) ** 2).sum()

        compiled = jax.jit(jax.grad(loss)).lower(tiny.random_params(model)).compile()
        computations, _ = hlo_text.parse(compiled.as_text())
        return max(len(one.instructions) for name, one in computations.items() if "fused" in name)

    assert most_instructions(4) < 1.2 * most_instructions(2)
