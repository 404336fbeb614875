"""The recurrent model's decoders: streams that run side by side and may read each other.

Letters: B batch, P pairs, K streams of each way (see `Pairing`), W ways, S source steps, M slots of
the cache, T target steps, E examples of a row, D model.
"""

import functools

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from bidi.models.attention import attend, attend_step, future_mask
from bidi.models.axes import constrain
from bidi.models.cache import KeysValues, cached_masks, empty_keys_values
from bidi.models.config import RecurrentConfig
from bidi.models.dense import Dense, Projections
from bidi.models.dropout import Dropout
from bidi.models.lstm import LSTM, begins
from bidi.models.model import Cache
from bidi.models.pairing import Pairing
from bidi.models.slots import Place
from bidi.models.source_attention import SourceAttention, stream_source_mask
from bidi.models.stream_attention import own_streams, read_others
from bidi.models.sublayers import of_each_way, per_way


@flax.struct.dataclass
class Encoded:
    """What the decoders read of a batch of sources.

    Attributes:
        keys_values: of each decoder, see `SourceAttention.project`.
        segments_BS: int32, 0 for padding.
        modulations: of each normalisation, [B, W, E, 2D], see `Modulation`.
    """

    keys_values: KeysValues
    segments_BS: jax.Array
    modulations: list[jax.Array]


def greatest(x_BSD: jax.Array, segments_BS: jax.Array, examples: int) -> jax.Array:
    """The greatest entries over each example of a row, [B, E, D]; 0 where there is no example."""
    # Padding counts for an example for which there is no room.
    example_BS = jnp.where(segments_BS == 0, examples, segments_BS - 1)
    # Row by row: where rows are divided over devices, none looks for its examples elsewhere.
    of_row = functools.partial(jax.ops.segment_max, num_segments=examples)
    found_BED = jax.vmap(of_row)(x_BSD, example_BS)
    return constrain(jnp.where(jnp.isneginf(found_BED), 0.0, found_BED), "rows")


def of_examples(values_BWED: jax.Array, segments_BPWT: jax.Array) -> jax.Array:
    """The values of the example that each step belongs to, [B, P, W, T, D]."""
    # What padding takes counts for nothing.
    example_BPWT = jnp.clip(segments_BPWT - 1, 0, values_BWED.shape[2] - 1)
    of_way = jax.vmap(lambda values_ED, example_PT: values_ED[example_PT], (0, 1), 1)
    return constrain(jax.vmap(of_way)(values_BWED, example_BPWT), "rows")


class Modulation(nn.Module):
    """From a condition, the scale (less 1) and the shift of a normalisation: [..., D] -> [..., 2D].

    Self-modulation (Chen et al. 2019, "On self modulation for generative adversarial networks").
    """

    @nn.compact
    def __call__(self, condition_D: jax.Array) -> jax.Array:
        size = condition_D.shape[-1]
        return Dense(2 * size, name="out")(nn.relu(Dense(size // 2, name="in")(condition_D)))


class Decoder(nn.Module):
    """Embedded streams to the states from which tokens are predicted; each way has its own.

    Attributes:
        config: see `RecurrentConfig`.
        ways: W.
    """

    config: RecurrentConfig
    ways: int

    def setup(self):
        config, size = self.config, self.config.model_size
        modulation = of_each_way(Modulation, self.ways)
        self.modulations = [modulation() for _ in range(config.decoder_layers + 1)]
        self.normalise = nn.LayerNorm(use_scale=False, use_bias=False)
        self.layers = [per_way(LSTM, own=True)(size) for _ in range(config.decoder_layers)]
        self.drop = Dropout(config.dropout)
        self.source_attention = SourceAttention(
            size, config.heads, self.ways, own=True, dtype=jnp.dtype("float32")
        )
        if config.interaction == "top":
            self.qkv = per_way(Projections, own=True)(3, size)
        self.out = per_way(Dense, own=True)(size)

    def encode(self, encoded_BSD: jax.Array, segments_BS: jax.Array, examples: int) -> Encoded:
        """What is read of the sources at every step."""
        condition_BED = greatest(encoded_BSD, segments_BS, examples)
        return Encoded(
            self.source_attention.project(encoded_BSD),
            segments_BS,
            [modulation(condition_BED) for modulation in self.modulations],
        )

    def __call__(
        self,
        x_BPWTD: jax.Array,
        encoded: Encoded,
        segments_BPWT: jax.Array,
        train: bool,
        interact: bool,
        own_only: bool,
    ) -> jax.Array:
        """[B, P, W, T, D] -> [B, P, W, T, D]; `own_only`: [B, 1, W, T, D], see `Model.states`."""
        modulations = [of_examples(values, segments_BPWT) for values in encoded.modulations]
        begins_BPWT = begins(segments_BPWT)
        x_BPWTD = self._modulated(x_BPWTD, modulations[0])
        for layer, modulation in zip(self.layers, modulations[1:], strict=True):
            x_BPWTD, _ = layer(x_BPWTD, begins_BPWT, None)
            x_BPWTD = self.drop(self._modulated(x_BPWTD, modulation), deterministic=not train)
        other_BPWTD = None
        if interact:
            mask, qkv, heads = future_mask(segments_BPWT), self.qkv(x_BPWTD), self.config.heads
            other_BPWTD, _ = read_others(qkv, heads, None, mask, None, Pairing(None))
            if own_only:
                x_BPWTD, other_BPWTD, segments_BPWT = (
                    own_streams(x) for x in (x_BPWTD, other_BPWTD, segments_BPWT)
                )
        source_mask = stream_source_mask(segments_BPWT, encoded.segments_BS, self.ways)
        source_BPWTD = self.source_attention.read(x_BPWTD, encoded.keys_values, source_mask, attend)
        return self._joined(x_BPWTD, other_BPWTD, source_BPWTD)

    def step(
        self,
        x_BKW1D: jax.Array,
        encoded: Encoded,
        cache: Cache,
        place: Place,
        interact: bool,
        pairing: Pairing,
    ) -> tuple[jax.Array, Cache]:
        """One step of streams: the states [B, P, W, 1, D] of pairs, and the cache with it."""
        slots = place.streams
        parents_BKW1 = slots.parents_BKW[..., None]
        begins_BKW1 = jnp.broadcast_to((place.step_B == 0)[:, None, None, None], parents_BKW1.shape)
        modulations = [values[:, None, :, :1] for values in encoded.modulations]
        cache = dict(cache)
        with jax.named_scope("recurrence"):
            x_BKW1D = self._modulated(x_BKW1D, modulations[0])
            for index, layer in enumerate(self.layers):
                name = f"layers_{index}"
                carry = jax.tree.map(
                    lambda room: jnp.take_along_axis(room, parents_BKW1, axis=1), cache[name]
                )
                x_BKW1D, cache[name] = layer(x_BKW1D, begins_BKW1, carry)
                x_BKW1D = self._modulated(x_BKW1D, modulations[index + 1])
        other_BPW1D = None
        with jax.named_scope("attention"):
            if interact:
                _, mask_BW1PM = cached_masks(slots, pairing)
                qkv, heads = self.qkv(x_BKW1D), self.config.heads
                other_BPW1D, cache["top"] = read_others(
                    qkv, heads, cache["top"], mask_BW1PM, slots.slot_BKW, pairing
                )
            source_mask = (encoded.segments_BS != 0)[:, None, None, None]
            source_BKW1D = self.source_attention.read(
                x_BKW1D, encoded.keys_values, source_mask, attend_step
            )
        own_BPW1D, source_BPW1D = pairing.pairs(x_BKW1D), pairing.pairs(source_BKW1D)
        return self._joined(own_BPW1D, other_BPW1D, source_BPW1D), cache

    def empty_cache(self, batch: int, streams: int, slots: int) -> Cache:
        """The last states of every stream, and so many slots for what others read of its steps."""
        config = self.config
        nothing_BKWD = jnp.zeros((batch, streams, self.ways, config.model_size))
        cache: Cache = {
            f"layers_{layer}": (nothing_BKWD, nothing_BKWD)
            for layer in range(config.decoder_layers)
        }
        if config.interaction == "top":
            width = config.model_size // config.heads
            cache["top"] = empty_keys_values(
                batch, self.ways, slots, config.heads, width, nothing_BKWD.dtype
            )
        return cache

    def _modulated(self, x_D: jax.Array, modulation_2D: jax.Array) -> jax.Array:
        scale_D, shift_D = jnp.split(modulation_2D, 2, axis=-1)
        return constrain(self.normalise(x_D) * (1 + scale_D) + shift_D, "rows")

    def _joined(
        self, own_D: jax.Array, other_D: jax.Array | None, source_D: jax.Array
    ) -> jax.Array:
        """From a stream's own state, what it reads of the source, and what of the other stream."""
        parts = [own_D, source_D]
        if self.config.interaction == "top":
            parts.append(jnp.zeros_like(own_D) if other_D is None else other_D)
        return constrain(nn.leaky_relu(self.out(jnp.concatenate(parts, axis=-1)), 0.2), "rows")
