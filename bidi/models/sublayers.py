"""What encoder and decoder layers are put together from.

Letters: B batch, P pairs, W ways, T steps, D model, F feed-forward.
"""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from bidi.models.attention import Fusion
from bidi.models.axes import constrain, steps_as_one_axis
from bidi.models.config import TransformerConfig
from bidi.models.dense import DECODING, Dense
from bidi.models.dropout import Dropout


def per_way(module: type[nn.Module], own: bool) -> type[nn.Module]:
    """The module; if `own`, with parameters for each way, the third axis of [B, P, W, ...]."""
    if not own:
        return module
    return nn.vmap(
        module,
        variable_axes={"params": 0, DECODING: 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=2,
        out_axes=2,
    )


def of_each_way(module: type[nn.Module], ways: int) -> type[nn.Module]:
    """With parameters for each way, of an input that all share: [B, ...] -> [B, W, ...]."""
    return nn.vmap(
        module,
        variable_axes={"params": 0, DECODING: 0},
        split_rngs={"params": True},
        in_axes=None,
        out_axes=1,
        axis_size=ways,
    )


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` of all steps in one axis: [..., D] -> [..., D].

    The gradient sums products over D. XLA on a CPU takes ten times as long for that where there are
    axes of length 1, as P is in training, and W of one direction.
    """

    # Nothing is masked here.
    def __call__(self, x_TD: jax.Array) -> jax.Array:  # type: ignore[override]
        """Normalises each step."""
        return super().__call__(x_TD.reshape(-1, x_TD.shape[-1])).reshape(x_TD.shape)


def make_fusion(config: TransformerConfig, train: bool) -> nn.Module:
    """The configured way to join history and future, both [B, P, W, T, D]."""
    return per_way(Fusion, config.own_decoders)(
        kind=config.fusion,
        weight=config.fusion_weight,
        dropout=config.future_dropout,
        train=train,
        name="fusion",
    )


def run_layer(
    config: TransformerConfig,
    layer: nn.Module,
    x_TD: jax.Array,
    function: Callable[[nn.Module, jax.Array], jax.Array],
) -> jax.Array:
    """`function(layer, x_TD)`; with `Transformer.remat`, keeps nothing of it for the gradient."""
    return (nn.remat(function) if config.remat else function)(layer, x_TD)


@dataclasses.dataclass(frozen=True)
class Residual:
    """Residual connection, normalisation and dropout around a sublayer, pre- or post-norm."""

    config: TransformerConfig
    own: bool
    train: bool

    def __call__(
        self, x_TD: jax.Array, sublayer: Callable[[jax.Array], jax.Array], norm: str
    ) -> jax.Array:
        """`sublayer` maps [..., T, D] to [..., T, D]; `norm` names its normalisation."""
        normalise = per_way(LayerNorm, self.own)(dtype=x_TD.dtype, name=norm)
        drop = Dropout(self.config.dropout, deterministic=not self.train)
        if self.config.norm == "pre":
            return constrain(_sum(x_TD, drop(sublayer(normalise(x_TD)))), "rows")
        return constrain(normalise(_sum(x_TD, drop(sublayer(x_TD)))), "rows")


def _sum(x_TD: jax.Array, y_TD: jax.Array) -> jax.Array:
    """x + y, [..., D], with all steps in one axis, as norms and dense layers read them.

    With another shape between, XLA on a CPU does not see that products read the sum, so that it
    must be written down: whatever reads it would compute it anew, down to the first layer, with the
    bits of every dropout. So it still does where norms come after and are of own decoders, which
    read it turned round.
    """
    return (steps_as_one_axis(x_TD) + steps_as_one_axis(y_TD)).reshape(x_TD.shape)


class FeedForward(nn.Module):
    """Two dense layers with a rectifier between: [..., D] -> [..., D]."""

    size: int

    @nn.compact
    def __call__(self, x_TD: jax.Array) -> jax.Array:
        hidden_TF = nn.relu(Dense(self.size, dtype=x_TD.dtype, name="in")(x_TD))
        hidden_TF = constrain(hidden_TF, "rows", *[None] * (x_TD.ndim - 2), "feedforward")
        return Dense(x_TD.shape[-1], dtype=x_TD.dtype, name="out")(hidden_TF)


def sinusoidal_positions(positions: jax.Array, size: int) -> jax.Array:
    """Vaswani et al. 2017, section 3.5: [...] int -> [..., size] float32, sines then cosines."""
    rates = 10_000.0 ** (-jnp.arange(size // 2, dtype=jnp.float32) / (size // 2))
    angles = positions.astype(jnp.float32)[..., None] * rates.reshape(*(1,) * positions.ndim, -1)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
