"""A Transformer whose decoder writes pairs of streams that may read each other.

Letters: B batch, P pairs, K streams of each way (see `Pairing`), W ways, S source steps, T target
steps, D model, V vocabulary.
"""

import functools

import flax.linen as nn
import flax.struct
import jax

from bidi.models.attention import future_mask, history_mask
from bidi.models.cache import KeysValues
from bidi.models.config import TransformerConfig
from bidi.models.decoder import Decoder
from bidi.models.dropout import Dropout
from bidi.models.encoder import Encoder
from bidi.models.model import Cache, Model
from bidi.models.pairing import Pairing
from bidi.models.slots import Place, Room
from bidi.models.source_attention import stream_source_mask
from bidi.models.stream_attention import Call, own_streams
from bidi.models.sublayers import sinusoidal_positions


@flax.struct.dataclass
class Encoded:
    """What the decoder reads of a batch of sources.

    Attributes:
        keys_values: of each decoder layer, both [B, G, H, S, E].
        segments_BS: int32, 0 for padding.
    """

    keys_values: list[KeysValues]
    segments_BS: jax.Array


class Transformer(Model):
    """Encoder, decoder and embeddings; see `Model`."""

    config: TransformerConfig

    def setup(self):
        super().setup()
        config = self.config
        joint = self.source_vocabulary is None

        self.target_embedding = self.embedding(self.target_vocabulary)
        if joint and config.tied_embeddings:
            self.source_embedding = self.target_embedding
        else:
            self.source_embedding = self.embedding(
                self.target_vocabulary if self.source_vocabulary is None else self.source_vocabulary
            )
        if not config.tied_embeddings:
            self.output = self.embedding(self.target_vocabulary)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config, self.ways)
        self.drop = Dropout(config.dropout)

    def encode(
        self,
        source_BS: jax.Array,
        segments_BS: jax.Array,
        positions_BS: jax.Array,
        train: bool,
        examples: int,
    ) -> Encoded:
        x_BSD = self._embed(self.source_embedding, source_BS, positions_BS, train)
        encoded_BSD = self.encoder(x_BSD, segments_BS, train)
        return Encoded(self.decoder.project_source(encoded_BSD), segments_BS)

    @property
    def keeps_pairs(self) -> bool:
        return self.config.interaction == "layers"

    def empty_cache(self, batch: int, pairs: int, room: Room, combined: int | None = None) -> Cache:
        return self.decoder.empty_cache(batch, room)

    def step(
        self,
        encoded: Encoded,
        cache: Cache,
        tokens_BPW: jax.Array,
        place: Place,
        interact: bool,
        combined: int | None,
    ) -> tuple[jax.Array, Cache]:
        pairing = Pairing(combined)
        tokens_BKW1 = pairing.streams(tokens_BPW)[..., None]
        positions_B111 = place.step_B[:, None, None, None]
        states_BPW1D, cache = self.decoder.step(
            self._embed(self.target_embedding, tokens_BKW1, positions_B111, False),
            encoded.keys_values,
            (encoded.segments_BS != 0)[:, None, None, None],
            cache,
            place,
            interact and self.interacts,
            pairing,
        )
        return states_BPW1D[..., 0, :], cache

    def states(
        self,
        encoded: Encoded,
        inputs_BPWT: jax.Array,
        segments_BPWT: jax.Array,
        positions_BPWT: jax.Array,
        train: bool,
        interact: bool,
        own_only: bool = False,
    ) -> jax.Array:
        interact = interact and self.interacts
        read_source = functools.partial(
            stream_source_mask,
            source_segments_BS=encoded.segments_BS,
            decoders=self._decoders,
        )
        call = Call(
            own_mask=history_mask(segments_BPWT),
            other_mask=future_mask(segments_BPWT) if interact else None,
            source_mask=read_source(segments_BPWT),
            train=train,
            pairing=Pairing(None),
            own_source_mask=read_source(own_streams(segments_BPWT)) if own_only else None,
        )
        x_BPWTD = self._embed(self.target_embedding, inputs_BPWT, positions_BPWT, train)
        return self.decoder(x_BPWTD, encoded.keys_values, call)

    def output_table(self) -> jax.Array:
        tied = self.config.tied_embeddings
        return (self.target_embedding if tied else self.output).embedding

    @property
    def _decoders(self) -> int:
        return self.ways if self.config.own_decoders else 1

    def _embed(
        self, embedding: nn.Embed, tokens: jax.Array, positions: jax.Array, train: bool
    ) -> jax.Array:
        size = self.config.model_size
        x = embedding(tokens) * size**0.5 + sinusoidal_positions(positions, size)
        return self.drop(x.astype(self.config.activation_dtype), deterministic=not train)
