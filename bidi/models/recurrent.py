"""Su 2019's recurrent model: two LSTM decoders that read each other's states.

After the article "seq2seq之双向解码" (kexue.fm/archives/6877) and its code. There, the second
decoder read the first one's states with what these had read of it mixed in; here both read states.

Letters: B batch, P pairs, K streams of each way (see `Pairing`), W ways, S source steps, T target
steps, D model.
"""

import jax

from bidi.models.config import RecurrentConfig
from bidi.models.dropout import Dropout
from bidi.models.model import Cache, Model
from bidi.models.pairing import Pairing
from bidi.models.recurrent_decoder import Decoder, Encoded
from bidi.models.recurrent_encoder import Encoder
from bidi.models.slots import Place, Room


class Recurrent(Model):
    """Encoder, decoders and embeddings; see `Model`."""

    config: RecurrentConfig

    def setup(self):
        super().setup()
        config = self.config

        self.target_embedding = self.embedding(self.target_vocabulary)
        self.source_embedding = (
            self.target_embedding
            if self.source_vocabulary is None
            else self.embedding(self.source_vocabulary)
        )
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
        x_BSD = self.drop(self.source_embedding(source_BS), deterministic=not train)
        return self.decoder.encode(self.encoder(x_BSD, segments_BS, train), segments_BS, examples)

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
        x_BPWTD = self.drop(self.target_embedding(inputs_BPWT), deterministic=not train)
        interact = interact and self.interacts
        return self.decoder(x_BPWTD, encoded, segments_BPWT, train, interact, own_only)

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
        x_BKW1D = self.target_embedding(pairing.streams(tokens_BPW)[..., None])
        states_BPW1D, cache = self.decoder.step(
            x_BKW1D, encoded, cache, place, interact and self.interacts, pairing
        )
        return states_BPW1D[..., 0, :], cache

    @property
    def keeps_pairs(self) -> bool:
        return False

    def empty_cache(self, batch: int, pairs: int, room: Room, combined: int | None = None) -> Cache:
        return self.decoder.empty_cache(batch, combined or pairs, room.streams)

    def output_table(self) -> jax.Array:
        return self.output.embedding
