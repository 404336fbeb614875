"""The shape of a model.

Letters: D model, F feed-forward.
"""

import dataclasses
from typing import ClassVar, Literal

import gin
import jax.numpy as jnp

from bidi import ranges
from bidi.models.attention import FusionName


@gin.configurable("Transformer")
@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """The shape of the model.

    Attributes:
        encoder_layers: number of encoder layers.
        decoder_layers: number of decoder layers.
        model_size: D.
        heads: attention heads; twice as many divide `model_size`.
        feedforward_size: F.
        dropout: rate on embeddings and on the output of every sublayer.
        norm: layer normalisation before each sublayer or after it.
        tied_embeddings: one matrix for what the decoder reads and what it predicts, and for the
            source too where the vocabulary is joint.
        dtype: of activations; parameters, softmax and loss are float32.
        interaction: where a stream reads the other: nowhere, once above the decoder (Su 2019), or
            in the self-attention of every layer (SB-NMT).
        fusion: how history and future are joined, see `attention.Fusion`.
        fusion_weight: of the future term in `tanh` and `linear`; SB-NMT has 0.1.
        future_dropout: rate on the future term; SB-NMT has 0.3.
        own_decoders: a decoder for each direction (embeddings and output are shared, as in Su
            2019) instead of one for both.
        copy_prior: averages the logits with a learned prior over the words of the source, see
            `output.CopyPrior`; needs a joint vocabulary.
        remat: keeps of each layer only what it reads, and computes the rest anew for the gradient:
            less memory for about a third more time.
    """

    encoder_layers: int = 3
    decoder_layers: int = 3
    model_size: int = 256
    heads: int = 4
    feedforward_size: int = 1024
    dropout: float = 0.1
    norm: Literal["pre", "post"] = "pre"
    tied_embeddings: bool = True
    dtype: Literal["float32", "bfloat16"] = "float32"
    interaction: Literal["none", "top", "layers"] = "none"
    fusion: FusionName = "tanh"
    fusion_weight: float = 0.1
    future_dropout: float = 0.3
    own_decoders: bool = False
    copy_prior: bool = False
    remat: bool = False

    name: ClassVar = "Transformer"

    def __post_init__(self):
        ranges.check(self, self.name, "encoder_layers", "decoder_layers", least=0)
        ranges.check(self, self.name, "model_size", "heads", "feedforward_size", least=1)
        ranges.check(self, self.name, "dropout", "future_dropout", least=0, below=1)
        if self.model_size % (2 * self.heads):
            raise ValueError(
                f"Transformer.model_size = {self.model_size} is no multiple of twice "
                f"Transformer.heads = {self.heads}"
            )
        if self.interaction == "layers" and not self.decoder_layers:
            raise ValueError(
                "Transformer.interaction = 'layers' with Transformer.decoder_layers = 0: there is "
                "no layer in which streams could read each other; use 'top' or 'none'"
            )

    @property
    def activation_dtype(self) -> jnp.dtype:
        """`dtype` as jax knows it."""
        return jnp.dtype(self.dtype)


@gin.configurable("Recurrent")
@dataclasses.dataclass(frozen=True)
class RecurrentConfig:
    """The shape of a recurrent model; its defaults are Su's.

    Attributes:
        encoder_layers: number of bidirectional LSTM layers.
        decoder_layers: number of LSTM layers of each direction's decoder.
        model_size: D, of embeddings and decoder states; encoder states have half of it a direction.
        heads: attention heads, a divisor of `model_size`.
        dropout: rate on embeddings and on the output of every layer.
        interaction: whether a stream reads the other, once, above the decoders.
        copy_prior: averages the logits with a learned prior over the words of the source, see
            `output.CopyPrior`; needs a joint vocabulary.
    """

    encoder_layers: int = 2
    decoder_layers: int = 2
    model_size: int = 128
    heads: int = 8
    dropout: float = 0.0
    interaction: Literal["none", "top"] = "none"
    copy_prior: bool = False

    name: ClassVar = "Recurrent"

    def __post_init__(self):
        ranges.check(self, self.name, "decoder_layers", least=0)
        ranges.check(self, self.name, "encoder_layers", "model_size", "heads", least=1)
        ranges.check(self, self.name, "dropout", least=0, below=1)
        if self.model_size % 4 or self.model_size % self.heads:
            raise ValueError(
                f"Recurrent.model_size = {self.model_size} is no multiple of 4 and of "
                f"Recurrent.heads = {self.heads}"
            )

    @property
    def activation_dtype(self) -> jnp.dtype:
        """There is no other."""
        return jnp.dtype("float32")


ModelConfig = TransformerConfig | RecurrentConfig
