"""Models that compile in seconds, with random parameters that are all in play.

B batch, P pairs, W ways, S source steps, T target steps, I steps of the cache, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bidi.models.config import RecurrentConfig, TransformerConfig
from bidi.models.model import Model, decoding_variables
from bidi.models.output import project
from bidi.models.recurrent import Recurrent
from bidi.models.slots import Place, Room
from bidi.models.transformer import Transformer
from bidi.search.slots import first_slots
from bidi.tokens import FIRST_TEXT_ID

TARGETS, SOURCES = 13, 11  # sizes of the vocabularies


def make_model(ways: int = 2, recurrent: bool = False, joint: bool = False, **config) -> Model:
    """A model whose future term is too large to be overlooked; no encoder layers, for speed."""
    if recurrent:
        shape = RecurrentConfig(**({"encoder_layers": 1, "model_size": 8, "heads": 2} | config))
        return Recurrent(shape, ways, TARGETS, None if joint else SOURCES)
    tiny = {
        "encoder_layers": 0,
        "decoder_layers": 2,
        "model_size": 8,
        "heads": 2,
        "feedforward_size": 12,
        "fusion_weight": 0.8,
    }
    shape = TransformerConfig(**(tiny | config))
    return Transformer(shape, ways, TARGETS, None if joint else SOURCES)


def random_params(model: Model, seed: int = 0) -> dict:
    """Parameters none of which is at the 0 or 1 where `init` puts biases and scales."""
    rng = np.random.default_rng(seed)
    streams = np.ones((1, model.ways, 1), np.int32)
    batch = source_batch(np.ones((1, 1), np.int32))
    batch |= {"inputs": streams, "segments": streams, "positions": streams}
    shapes = jax.eval_shape(model.init, jax.random.key(0), batch)["params"]

    def draw(path, leaf):
        normal = rng.standard_normal(leaf.shape).astype(np.float32)
        return {
            "kernel": lambda: normal / np.float32(np.sqrt(leaf.shape[-2])),
            "embedding": lambda: normal / np.float32(np.sqrt(leaf.shape[-1])),
            "bias": lambda: normal / 2,
            "scale": lambda: 1 + normal / 3,
        }[path[-1].key]()

    return jax.tree_util.tree_map_with_path(draw, shapes)


def source_batch(segments_BS: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """Random sources; PAD where the segment is 0."""
    segments_BS = np.asarray(segments_BS, np.int32)
    tokens_BS = np.random.default_rng(seed).integers(FIRST_TEXT_ID, SOURCES, segments_BS.shape)
    return {
        "source": np.where(segments_BS == 0, 0, tokens_BS).astype(np.int32),
        "source_segments": segments_BS,
        "source_positions": positions(segments_BS),
    }


def positions(segments_T: np.ndarray) -> np.ndarray:
    """Steps since the segment began, along the last axis; int32."""
    steps_T = np.broadcast_to(np.arange(segments_T.shape[-1]), segments_T.shape)
    begins_T = np.diff(segments_T, axis=-1, prepend=-1) != 0
    return (steps_T - np.maximum.accumulate(np.where(begins_T, steps_T, 0), axis=-1)).astype(
        np.int32
    )


def random_streams(segments_BPWT: np.ndarray, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Inputs (PAD where the segment is 0), segments and positions, as `decode` takes them."""
    segments_BPWT = np.asarray(segments_BPWT, np.int32)
    shape = segments_BPWT.shape
    tokens_BPWT = np.random.default_rng(seed).integers(FIRST_TEXT_ID, TARGETS, shape)
    inputs_BPWT = np.where(segments_BPWT == 0, 0, tokens_BPWT).astype(np.int32)
    return inputs_BPWT, segments_BPWT, positions(segments_BPWT)


@functools.partial(jax.jit, static_argnames=("model", "interact"))
def decode(model, params, batch, streams, interact) -> jax.Array:
    """Encodes and decodes whole streams: logits [B, P, W, T, V]."""
    source = model.apply({"params": params}, batch, method="start")
    return model.apply({"params": params}, source, *streams, interact=interact, method="decode")


@functools.partial(jax.jit, static_argnames="model")
def decode_beside(model, params, batch, streams, partner_inputs_BWT) -> jax.Array:
    """Streams [B, W, T] beside partners, without dropout: logits [B, W, T, V]."""
    batch = batch | dict(zip(("inputs", "segments", "positions"), streams, strict=True))
    source = model.apply({"params": params}, batch, method="start")
    arguments = source, batch, partner_inputs_BWT
    return project(*model.apply({"params": params}, *arguments, method="unprojected_beside"))


@functools.partial(jax.jit, static_argnames=("model", "interact"))
def decode_steps(model, params, batch, steps, interact) -> jax.Array:
    """One step with the cache after another: log-probabilities [I, B, P, W, V].

    `steps`: tokens [I, B, P, W], steps [I, B] and slots [I, B, P, W, ...].
    """
    apply = functools.partial(model.apply, decoding_variables(model, params, "cpu"))
    source = apply(batch, method="start")
    _, rows, pairs, _, slots = steps[2].seen_BKWM.shape
    cache = apply(rows, pairs, Room(slots, slots), method="empty_cache")
    # Room that is not yet written must not matter, whatever is in it.
    cache = jax.tree.map(lambda room: room + 3, cache)

    def step(cache, xs):
        tokens_BPW, step_B, slots = xs
        place = Place(jnp.arange(rows), step_B, slots, slots)
        prices, cache = apply(source, cache, tokens_BPW, place, interact, method="decode_step")
        return cache, prices.log_probs()

    return jax.lax.scan(step, cache, steps)[1]


class ListedPairs:
    """Pairs in memory."""

    def __init__(self, pairs):
        self._pairs = pairs
        self.longest = {side: max(len(pair[side]) for pair in pairs) for side in pairs[0]}

    def __len__(self):
        return len(self._pairs)

    def __getitems__(self, indices):
        return [self._pairs[i] for i in indices]

    def reversed(self):
        """The same pairs with targets turned round."""
        return ListedPairs([pair | {"target": pair["target"][::-1]} for pair in self._pairs])


def random_pairs(count):
    rng = np.random.default_rng(0)

    def tokens(size):
        return rng.integers(FIRST_TEXT_ID, size, rng.integers(1, 6)).astype(np.int32)

    return ListedPairs(
        [{"source": tokens(SOURCES), "target": tokens(TARGETS)} for _ in range(count)]
    )


def first_step(model, params, batch: int, k: int, combined: int | None, interact: bool = True):
    """`decode_step` of all k * k pairs of k streams a way, from nothing written."""
    apply = functools.partial(model.apply, decoding_variables(model, params, "cpu"))
    pairs, streams = (first_slots(batch, size, 2, 4 * size) for size in (k * k, k))
    room = Room(4 * k * k, 4 * k)
    if combined is None:
        streams, room = pairs, Room(room.pairs, room.pairs)
    cache = apply(batch, k * k, room, combined, method="empty_cache")
    tokens_BPW = jnp.ones((batch, k * k, 2), jnp.int32)
    place = Place(jnp.arange(batch), jnp.zeros(batch, jnp.int32), pairs, streams)
    source = apply(source_batch(np.ones((batch, 5))), method="start")
    return apply(source, cache, tokens_BPW, place, interact, combined, method="decode_step")


def first_place(batch: int, pairs: int, slots: int) -> Place:
    """Of so many pairs of two streams of their own that have written nothing."""
    held = first_slots(batch, pairs, 2, slots)
    return Place(jnp.arange(batch), jnp.zeros(batch, jnp.int32), held, held)
