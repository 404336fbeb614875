"""The encoder: source tokens to encodings.

Letters: B batch, S source steps, D model.
"""

import flax.linen as nn
import jax

from bidi.models.attention import attend, merge_heads, source_mask, split_heads
from bidi.models.config import TransformerConfig
from bidi.models.dense import Dense, Projections
from bidi.models.sublayers import FeedForward, LayerNorm, Residual, run_layer


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward: [B, S, D] -> [B, S, D]."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BSD: jax.Array, mask_B1SS: jax.Array, train: bool) -> jax.Array:
        config = self.config

        def self_attention(y_BSD: jax.Array) -> jax.Array:
            project = Projections(3, config.model_size, dtype=y_BSD.dtype, name="qkv")
            q_BHSE, k_BHSE, v_BHSE = (split_heads(part, config.heads) for part in project(y_BSD))
            read_BSD = merge_heads(attend(q_BHSE, k_BHSE, v_BHSE, mask_B1SS))
            return Dense(config.model_size, dtype=y_BSD.dtype, name="out")(read_BSD)

        residual = Residual(config, own=False, train=train)
        x_BSD = residual(x_BSD, self_attention, "self_attention_norm")
        feedforward = FeedForward(config.feedforward_size, name="feedforward")
        return residual(x_BSD, feedforward, "feedforward_norm")


class Encoder(nn.Module):
    """Embedded source to encodings: [B, S, D] -> [B, S, D]."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BSD: jax.Array, segments_BS: jax.Array, train: bool) -> jax.Array:
        mask_B1SS = source_mask(segments_BS, segments_BS)
        for layer in range(self.config.encoder_layers):
            module = EncoderLayer(self.config, name=f"layer_{layer}")
            x_BSD = run_layer(self.config, module, x_BSD, lambda m, x: m(x, mask_B1SS, train))
        if self.config.norm == "pre":
            x_BSD = LayerNorm(dtype=x_BSD.dtype, name="norm")(x_BSD)
        return x_BSD
