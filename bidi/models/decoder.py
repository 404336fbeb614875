"""The decoder: streams that run side by side and may read each other.

Letters: B batch, P pairs, K streams of each way (see `Pairing`), W ways, S source steps, T target
steps, D model.
"""

import dataclasses
import functools

import flax.linen as nn
import jax

from bidi.models.cache import KeysValues, cached_masks, empty_keys_values
from bidi.models.config import TransformerConfig
from bidi.models.dense import Dense, Projections
from bidi.models.model import Cache
from bidi.models.pairing import Pairing
from bidi.models.slots import Place, Room, Slots
from bidi.models.source_attention import SourceAttention
from bidi.models.stream_attention import Call, own_streams, read_others, read_streams
from bidi.models.sublayers import FeedForward, LayerNorm, Residual, make_fusion, per_way, run_layer


class SelfAttention(nn.Module):
    """A stream reads itself and, where the interaction is in the layers, the other.

    [B, P, W, T, D] -> [B, P, W, T, D]. What does not depend on a stream's partner is computed once
    a stream.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(
        self, x_BPWTD: jax.Array, cache: Cache | None, call: Call
    ) -> tuple[jax.Array, Cache | None]:
        config, dtype = self.config, x_BPWTD.dtype
        dense, projections = (per_way(m, config.own_decoders) for m in (Dense, Projections))
        x_BKWTD = call.pairing.streams(x_BPWTD)
        qkv = projections(3, config.model_size, dtype=dtype, name="qkv")(x_BKWTD)
        history, future, cache = read_streams(qkv, config.heads, cache, call)
        if config.interaction == "layers":
            history = make_fusion(config, call.train)(history, future)
        return dense(config.model_size, dtype=dtype, name="out")(history), cache


class TopInteraction(nn.Module):
    """The streams read each other's final states, once, above the decoder (Su 2019).

    [B, P, W, T, D] -> [B, P, W, T, D], as `SelfAttention`.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(
        self, x_BPWTD: jax.Array, cache: Cache | None, call: Call
    ) -> tuple[jax.Array, Cache | None]:
        config = self.config
        projections = per_way(Projections, config.own_decoders)
        x_BKWTD = call.pairing.streams(x_BPWTD)
        qkv = projections(3, config.model_size, dtype=x_BPWTD.dtype, name="qkv")(x_BKWTD)
        future, cache = read_others(
            qkv, config.heads, cache, call.other_mask, call.slot_BKW, call.pairing
        )
        if call.own_source_mask is not None:
            x_BPWTD, future = own_streams(x_BPWTD), own_streams(future)
        return make_fusion(config, call.train)(x_BPWTD, future), cache


class DecoderLayer(nn.Module):
    """Self-attention with or without the other stream, source attention, feed-forward."""

    config: TransformerConfig
    ways: int
    last: bool

    def setup(self):
        config = self.config
        self.source_attention = SourceAttention(
            config.model_size,
            config.heads,
            self.ways,
            config.own_decoders,
            config.activation_dtype,
        )

    @nn.compact
    def __call__(
        self, x_BPWTD: jax.Array, source: KeysValues, cache: Cache | None, call: Call
    ) -> tuple[jax.Array, Cache | None]:
        config, own = self.config, self.config.own_decoders
        new_cache = cache

        def self_attention(y_BPWTD: jax.Array) -> jax.Array:
            nonlocal new_cache
            y_BPWTD, new_cache = SelfAttention(config, name="self_attention")(y_BPWTD, cache, call)
            return y_BPWTD

        residual = Residual(config, own=own, train=call.train)
        x_BPWTD = residual(x_BPWTD, self_attention, "self_attention_norm")
        reads_other = call.other_mask is not None
        if self.last and reads_other and call.own_source_mask is not None:
            x_BPWTD = own_streams(x_BPWTD)
            call = dataclasses.replace(call, source_mask=call.own_source_mask)
        x_BPWTD = residual(
            x_BPWTD,
            lambda y: self.source_attention(y, source, call.source_mask, call.by),
            "source_attention_norm",
        )
        feedforward = per_way(FeedForward, own)(config.feedforward_size, name="feedforward")
        return residual(x_BPWTD, feedforward, "feedforward_norm"), new_cache


class Decoder(nn.Module):
    """Embedded streams to the states from which tokens are predicted."""

    config: TransformerConfig
    ways: int

    def setup(self):
        layers = self.config.decoder_layers
        self.layers = [
            DecoderLayer(self.config, self.ways, last=number == layers)
            for number in range(1, layers + 1)
        ]
        if self.config.norm == "pre":
            self.norm = per_way(LayerNorm, self.config.own_decoders)(
                dtype=self.config.activation_dtype
            )
        if self.config.interaction == "top":
            self.top = TopInteraction(self.config)

    def project_source(self, encoded_BSD: jax.Array) -> list[KeysValues]:
        """The source's keys and values for each layer."""
        return [layer.source_attention.project(encoded_BSD) for layer in self.layers]

    def __call__(self, x_BPWTD: jax.Array, source: list[KeysValues], call: Call) -> jax.Array:
        """Whole streams, [B, P, W, T, D] -> [B, P, W, T, D].

        With an `own_source_mask` in the call, [B, 1, W, T, D].
        """
        in_layers = call if self.config.interaction == "layers" else call.alone()
        for layer, keys_values in zip(self.layers, source, strict=True):
            whole = functools.partial(_whole_streams, source=keys_values, call=in_layers)
            x_BPWTD = run_layer(self.config, layer, x_BPWTD, whole)
        x_BPWTD = self._normalised(x_BPWTD)
        return self.top(x_BPWTD, None, call)[0] if self.config.interaction == "top" else x_BPWTD

    def step(
        self,
        x_BKW1D: jax.Array,
        source: list[KeysValues],
        source_mask: jax.Array,
        cache: Cache,
        place: Place,
        interact: bool,
        pairing: Pairing,
    ) -> tuple[jax.Array, Cache]:
        """One step of streams: the states [B, P, W, 1, D] of pairs, and the cache with it.

        A stream depends on its partner from where it has first read it.
        """

        def call_of(slots: Slots, pairing: Pairing) -> Call:
            own, other = cached_masks(slots, pairing)
            other_mask = other if interact else None
            return Call(own, other_mask, source_mask, False, pairing, slots.slot_BKW)

        with jax.named_scope("attention"):
            first, later = call_of(place.streams, pairing), call_of(place.pairs, Pairing(None))
        in_layers = self.config.interaction == "layers"
        x = pairing.pairs(x_BKW1D) if in_layers else x_BKW1D
        caches = {}
        for index, (layer, keys_values) in enumerate(zip(self.layers, source, strict=True)):
            name = f"layers_{index}"
            call = (later if index else first) if in_layers else first.alone()
            x, caches[name] = layer(x, keys_values, cache[name], call)
        x = self._normalised(x)
        x_BPW1D = x if in_layers else pairing.pairs(x)
        if self.config.interaction == "top":
            x_BPW1D, caches["top"] = self.top(x_BPW1D, cache["top"], first)
        return x_BPW1D, caches

    def empty_cache(self, batch: int, room: Room) -> Cache:
        """Room for the steps of every pair, see `empty_keys_values`; or only of every stream.

        Of streams where they have not read each other: in all layers, or only in the first.
        """
        config = self.config
        empty = functools.partial(
            empty_keys_values,
            batch,
            self.ways,
            heads=config.heads,
            width=config.model_size // config.heads,
            dtype=config.activation_dtype,
        )
        names = [f"layers_{layer}" for layer in range(config.decoder_layers)]
        of_pairs = names[1:] if config.interaction == "layers" else []
        if config.interaction == "top":
            names.append("top")
        return {name: empty(room.pairs if name in of_pairs else room.streams) for name in names}

    def _normalised(self, x_TD: jax.Array) -> jax.Array:
        return self.norm(x_TD) if self.config.norm == "pre" else x_TD


def _whole_streams(
    layer: nn.Module, x_BPWTD: jax.Array, source: KeysValues, call: Call
) -> jax.Array:
    return layer(x_BPWTD, source, None, call)[0]
