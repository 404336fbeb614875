"""The recurrent model's encoder: source tokens to encodings.

Letters: B batch, S source steps, D model.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from bidi.models.axes import constrain
from bidi.models.config import RecurrentConfig
from bidi.models.dropout import Dropout
from bidi.models.lstm import LSTM, begins
from bidi.models.sublayers import per_way


class Encoder(nn.Module):
    """Bidirectional LSTMs over embedded sources: [B, S, D] -> [B, S, D]."""

    config: RecurrentConfig

    @nn.compact
    def __call__(self, x_BSD: jax.Array, segments_BS: jax.Array, train: bool) -> jax.Array:
        config = self.config
        # From its end a row begins with padding, of which the examples behind it see nothing.
        begins_B12S = begins(_both_ways(segments_BS))
        for layer in range(config.encoder_layers):
            x_BSD = nn.LayerNorm(name=f"norm_{layer}")(x_BSD)
            lstm = per_way(LSTM, own=True)(config.model_size // 2, name=f"layer_{layer}")
            states, _ = lstm(_both_ways(x_BSD), begins_B12S, None)
            forward, backward = states[:, 0, 0], jnp.flip(states[:, 0, 1], axis=1)
            x_BSD = constrain(jnp.concatenate([forward, backward], axis=-1), "rows")
            x_BSD = Dropout(config.dropout, deterministic=not train)(x_BSD)
        return x_BSD


def _both_ways(x_BS: jax.Array) -> jax.Array:
    """[B, S, ...] as it is and from its end: [B, 1, 2, S, ...]."""
    return jnp.stack([x_BS, jnp.flip(x_BS, axis=1)], axis=1)[:, None]
