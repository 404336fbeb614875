"""A Transformer whose decoder writes pairs of streams that may read each other.

One decoder serves training (whole streams, P = 1), rescoring (whole streams, P candidates) and
search (one step with a cache).

Letters: B batch, P pairs, W ways, S source steps, T target steps, D model, V vocabulary.
"""

import functools

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from bidi.models.attention import both_mask, history_mask
from bidi.models.config import TransformerConfig
from bidi.models.decoder import (
    Cache,
    Call,
    Decoder,
    KeysValues,
    cached_mask,
    own_streams,
    stream_source_mask,
)
from bidi.models.encoder import Encoder
from bidi.models.sublayers import sinusoidal_positions

Batch = dict[str, jax.Array]


@flax.struct.dataclass
class Source:
    """A batch of encoded sources: what the decoder reads of them.

    Attributes:
        keys_values: of each decoder layer, [B, G, H, E, S] and [B, G, H, S, E].
        segments_BS: int32, 0 for padding.
    """

    keys_values: list[KeysValues]
    segments_BS: jax.Array


class Transformer(nn.Module):
    """Encoder, decoder and embeddings.

    Attributes:
        config: see `TransformerConfig`.
        ways: W, directions that the decoder writes.
        target_vocabulary: V.
        source_vocabulary: size of the source's own vocabulary; None where the vocabulary is joint.
    """

    config: TransformerConfig
    ways: int
    target_vocabulary: int
    source_vocabulary: int | None = None

    def setup(self):
        config = self.config
        joint = self.source_vocabulary is None

        def embedding(size: int) -> nn.Embed:
            init = nn.initializers.normal(config.model_size**-0.5)
            return nn.Embed(size, config.model_size, embedding_init=init)

        self.target_embedding = embedding(self.target_vocabulary)
        if joint and config.tied_embeddings:
            self.source_embedding = self.target_embedding
        else:
            self.source_embedding = embedding(
                self.target_vocabulary if self.source_vocabulary is None else self.source_vocabulary
            )
        if not config.tied_embeddings:
            self.output = embedding(self.target_vocabulary)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config, self.ways)
        self.drop = nn.Dropout(config.dropout)

    def __call__(self, batch: Batch, train: bool = False, interact: bool = True) -> jax.Array:
        """Logits of the labels.

        Args:
            batch: the batch dict of DESIGN: `source`, `source_segments`, `source_positions`
                [B, S], `inputs`, `segments`, `positions` [B, W, T], all int32.
            train: whether dropout is on; then needs the rng `dropout`.
            interact: False lets the streams of an interacting model run alone.

        Returns:
            float32 [B, W, T, V].
        """
        states_BWTD, output_VD = self.unprojected(batch, train, interact)
        return project(states_BWTD, output_VD)

    def unprojected(
        self, batch: Batch, train: bool = False, interact: bool = True
    ) -> tuple[jax.Array, jax.Array]:
        """`__call__` short of the last product, for a loss that never holds all logits.

        Returns:
            States [B, W, T, D] in the activations' dtype and the output's table, float32 [V, D]:
            logits are their product, see `project`.
        """
        return self.unprojected_of(self.start(batch, train), batch, train, interact)

    def unprojected_of(
        self, source: Source, batch: Batch, train: bool = False, interact: bool = True
    ) -> tuple[jax.Array, jax.Array]:
        """`unprojected`, of sources that are encoded already."""
        inputs_B1WT, segments_B1WT, positions_B1WT = (
            batch[key][:, None] for key in ("inputs", "segments", "positions")
        )
        states_B1WTD = self._states(
            source, inputs_B1WT, segments_B1WT, positions_B1WT, train, interact
        )
        return states_B1WTD[:, 0], self._output_table

    def unprojected_beside(
        self,
        source: Source,
        batch: Batch,
        partner_inputs_BWT: jax.Array,
        train: bool = False,
    ) -> tuple[jax.Array, jax.Array]:
        """`unprojected_of`, where each stream reads another version of the other stream.

        Two pairs of streams run: the first direction's own stream beside the second's partner, and
        the reverse. The states given back are those of the own streams, which see nothing of each
        other. As in search, a partner reads the stream that it is a partner of.

        Args:
            source: see `start`.
            batch: the batch dict, of two directions that interact.
            partner_inputs_BWT: int32, what way w reads where it is the other's partner; of the same
                segments and positions as `inputs`.
            train: as for `__call__`.
        """
        is_own_1PW1 = jnp.eye(2, dtype=bool)[None, :, :, None]
        inputs_BPWT = jnp.where(is_own_1PW1, batch["inputs"][:, None], partner_inputs_BWT[:, None])
        segments_BPWT, positions_BPWT = (
            jnp.repeat(batch[key][:, None], 2, axis=1) for key in ("segments", "positions")
        )
        states_B1WTD = self._states(
            source, inputs_BPWT, segments_BPWT, positions_BPWT, train, interact=True, own_only=True
        )
        return states_B1WTD[:, 0], self._output_table

    def smallest_batch(self) -> Batch:
        """A batch dict of one empty row: parameters do not depend on its lengths."""
        source_11, target_1W1 = (
            jnp.zeros((1, 1), jnp.int32),
            jnp.zeros((1, self.ways, 1), jnp.int32),
        )
        return {
            **dict.fromkeys(("source", "source_segments", "source_positions"), source_11),
            **dict.fromkeys(("inputs", "segments", "positions"), target_1W1),
        }

    def encode(
        self,
        source_BS: jax.Array,
        segments_BS: jax.Array,
        positions_BS: jax.Array,
        train: bool = False,
    ) -> Source:
        """Reads the sources, once for all that is written of them."""
        x_BSD = self._embed(self.source_embedding, source_BS, positions_BS, train)
        encoded_BSD = self.encoder(x_BSD, segments_BS, train)
        return Source(self.decoder.project_source(encoded_BSD), segments_BS)

    def decode(
        self,
        source: Source,
        inputs_BPWT: jax.Array,
        segments_BPWT: jax.Array,
        positions_BPWT: jax.Array,
        train: bool = False,
        interact: bool = True,
    ) -> jax.Array:
        """Prices whole streams: float32 logits [B, P, W, T, V]."""
        states_BPWTD = self._states(
            source, inputs_BPWT, segments_BPWT, positions_BPWT, train, interact
        )
        return project(states_BPWTD, self._output_table)

    def start(self, batch: Batch, train: bool = False) -> Source:
        """`encode` of a batch dict's sources."""
        return self.encode(
            batch["source"], batch["source_segments"], batch["source_positions"], train
        )

    def empty_cache(self, batch: int, pairs: int, steps: int) -> Cache:
        """A cache for `decode_step`, see `Decoder.empty_cache`."""
        return self.decoder.empty_cache(batch, pairs, steps)

    def decode_step(
        self,
        source: Source,
        cache: Cache,
        tokens_BPW: jax.Array,
        step_B: jax.Array,
        origins_BPWT: jax.Array,
        interact: bool = True,
    ) -> tuple[jax.Array, Cache]:
        """Prices the tokens after `tokens_BPW`, the `step_B`-th of their streams.

        Args:
            source: of each row, see `start`.
            cache: what was written at the steps before, see `empty_cache`.
            tokens_BPW: int32, the last tokens of the streams.
            step_B: int32, their place.
            origins_BPWT: int32, the pair in whose place each step of a stream was written; at
                `step_B` its own.
            interact: as for `__call__`.

        Returns:
            Log-probabilities, float32 [B, P, W, V], and the cache with this step in it.
        """
        interact = self._interacts(interact)
        with jax.named_scope("attention"):
            self_mask = cached_mask(origins_BPWT, step_B, interact)
        call = Call(
            self_mask=self_mask,
            source_mask=(source.segments_BS != 0)[:, None, None, None],
            step_B=step_B,
            interact=interact,
            train=False,
        )
        positions_B111 = step_B[:, None, None, None]
        x_BPW1D = self._embed(self.target_embedding, tokens_BPW[..., None], positions_B111, False)
        x_BPW1D, new_cache = self.decoder(x_BPW1D, source.keys_values, cache, call)
        with jax.named_scope("projection"):
            logits_BPWV = project(x_BPW1D[..., 0, :], self._output_table)
            return nn.log_softmax(logits_BPWV), new_cache

    def _states(
        self,
        source: Source,
        inputs_BPWT: jax.Array,
        segments_BPWT: jax.Array,
        positions_BPWT: jax.Array,
        train: bool,
        interact: bool,
        own_only: bool = False,
    ) -> jax.Array:
        """Whole streams to the states [B, P, W, T, D] from which labels are predicted.

        If `own_only`, of pair w only the stream of way w is wanted: [B, 1, W, T, D].
        """
        interact = self._interacts(interact)
        read_source = functools.partial(
            stream_source_mask,
            source_segments_BS=source.segments_BS,
            decoders=self._decoders,
        )
        call = Call(
            self_mask=both_mask(segments_BPWT) if interact else history_mask(segments_BPWT),
            source_mask=read_source(segments_BPWT),
            step_B=None,
            interact=interact,
            train=train,
            own_source_mask=read_source(own_streams(segments_BPWT)) if own_only else None,
        )
        x_BPWTD = self._embed(self.target_embedding, inputs_BPWT, positions_BPWT, train)
        x_BPWTD, _ = self.decoder(x_BPWTD, source.keys_values, None, call)
        return x_BPWTD

    @property
    def interacts(self) -> bool:
        """Whether the streams can read each other."""
        return self.ways == 2 and self.config.interaction != "none"

    @property
    def _output_table(self) -> jax.Array:
        tied = self.config.tied_embeddings
        return (self.target_embedding if tied else self.output).embedding

    @property
    def _decoders(self) -> int:
        return self.ways if self.config.own_decoders else 1

    def _interacts(self, asked: bool) -> bool:
        return asked and self.interacts

    def _embed(
        self, embedding: nn.Embed, tokens: jax.Array, positions: jax.Array, train: bool
    ) -> jax.Array:
        size = self.config.model_size
        x = embedding(tokens) * size**0.5 + sinusoidal_positions(positions, size)
        return self.drop(x.astype(self.config.activation_dtype), deterministic=not train)


def project(states_D: jax.Array, output_VD: jax.Array) -> jax.Array:
    """States [..., D] and the output's table [V, D] to float32 logits [..., V]."""
    output_VD = output_VD.astype(states_D.dtype)
    return jnp.einsum("...d,vd->...v", states_D, output_VD, preferred_element_type=jnp.float32)
