import flax.linen as nn
import jax
import numpy as np

from bidi.models.sublayers import LayerNorm, sinusoidal_positions


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
