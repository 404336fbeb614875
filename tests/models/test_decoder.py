"""Who sees whom, by the gradient of the logits with respect to what is read; what is computed once.

B batch, P pairs, W ways, G decoders, H heads, S source steps, T target steps, E head width,
D model, V vocabulary.
"""

import functools
import itertools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bidi.data.streams import Streams
from bidi.models.model import decoding_variables
from bidi.models.slots import Room
from bidi.tokens import FIRST_TEXT_ID
from tests.models import tiny

# Packed rows; in each, one way's second example is shorter than the other's.
SOURCE = tiny.source_batch([[1, 1, 2, 2, 2, 0], [1, 2, 2, 2, 2, 2]])
SEGMENTS_BPWT = np.array(
    [
        [[[1, 1, 1, 2, 2, 2, 2, 0], [1, 1, 1, 2, 2, 0, 0, 0]]] * 2,
        [[[1, 1, 1, 1, 0, 2, 2, 2], [1, 1, 1, 1, 1, 2, 2, 2]]] * 2,
    ]
)
STREAMS = tiny.random_streams(SEGMENTS_BPWT)


@functools.partial(jax.jit, static_argnames=("model", "interact", "beside"))
def sensitivity(model, params, batch, streams, interact, beside=False):
    """Whether each prediction depends on each embedding that is read.

    bool [B, P, W, T] x [B, P, W, T] of the streams and [B, P, W, T] x [B, S] of the source. If
    `beside`, predictions are [B, W, T], of the first pair's streams beside the inputs of the
    second, and what is read is pair w: the own stream of way w and the other way's partner.
    """
    mix_V = np.random.default_rng(1).standard_normal(tiny.TARGETS).astype(np.float32)

    def predictions(target_BPWTD, source_BSD):
        added = {"target_embedding": target_BPWTD, "source_embedding": source_BSD}

        def add(call, args, kwargs, context):
            embedded = call(*args, **kwargs)
            return embedded + added[context.module.name] if is_embedding(context) else embedded

        with nn.intercept_methods(add):
            if beside:
                own = [x[:, 0] for x in streams]
                arguments = model, params, batch, own, streams[0][:, 1]
                return tiny.decode_beside.__wrapped__(*arguments) @ mix_V
            return tiny.decode.__wrapped__(model, params, batch, streams, interact) @ mix_V

    def is_embedding(context):
        return isinstance(context.module, nn.Embed) and context.method_name == "__call__"

    size = model.config.model_size
    nothing = (jnp.zeros((*np.shape(x), size)) for x in (streams[0], batch["source"]))
    gradients = jax.jacrev(predictions, (0, 1))(*nothing)
    return jax.tree.map(lambda gradient: (gradient != 0).any(axis=-1), gradients)


def visible(segments_BPWT, source_BS, interact):
    """What a stream may see, from the definition, as `sensitivity` has it."""
    shape = segments_BPWT.shape
    streams, source = np.zeros(shape * 2, bool), np.zeros(shape + source_BS.shape, bool)
    for b, p, w, t in np.argwhere(segments_BPWT):
        segment = segments_BPWT[b, p, w, t]
        for other, j in itertools.product((w, 1 - w) if interact else (w,), range(t + 1)):
            streams[b, p, w, t, b, p, other, j] = segments_BPWT[b, p, other, j] == segment
        source[b, p, w, t, b] = source_BS[b] == segment
    return streams, source


SEEN = (
    ({"interaction": "none", "own_decoders": True, "norm": "post"}, True),
    ({"interaction": "top", "fusion": "tanh"}, True),
    ({"interaction": "top", "fusion": "concat", "own_decoders": True, "norm": "post"}, True),
    ({"interaction": "layers", "fusion": "tanh", "norm": "post"}, True),
    ({"interaction": "layers", "fusion": "gate", "own_decoders": True}, True),
    ({"interaction": "layers", "fusion": "linear"}, False),
    ({"recurrent": True, "interaction": "top"}, True),
    ({"recurrent": True, "interaction": "top"}, False),
)


def name(value) -> str:
    return "-".join(map(str, value.values())) if isinstance(value, dict) else f"interact {value}"


@pytest.mark.parametrize(("config", "interact"), SEEN, ids=name)
def test_a_stream_sees_what_was_written_in_its_own_example(config, interact):
    """Its own inputs and, when interacting, the other's, of steps 0 .. t; its own source."""
    model = tiny.make_model(encoder_layers=1, **config)
    found = sensitivity(model, tiny.random_params(model), SOURCE, STREAMS, interact=interact)
    interact = interact and config["interaction"] != "none"
    expected = visible(SEGMENTS_BPWT, SOURCE["source_segments"], interact)
    # A place where nothing is read predicts nothing that counts.
    real = SEGMENTS_BPWT != 0
    for found_part, expected_part in zip(found, expected, strict=True):
        np.testing.assert_array_equal(found_part[real], expected_part[real])


@pytest.mark.parametrize("config", [SEEN[2][0], SEEN[4][0]], ids=name)
def test_beside_partners_the_own_streams_see_nothing_of_each_other(config):
    """The way's own inputs and the partner's, of steps 0 .. t; not the other way's own inputs."""
    model = tiny.make_model(**config)
    params = tiny.random_params(model)
    found, _ = sensitivity(model, params, SOURCE, STREAMS, interact=True, beside=True)
    by_pair, _ = visible(SEGMENTS_BPWT, SOURCE["source_segments"], interact=True)
    for way in range(2):
        real = SEGMENTS_BPWT[:, 0, way] != 0
        np.testing.assert_array_equal(found[:, way][real], by_pair[:, way, way][real])
        # The other way's own stream is read in the other pair, by its partner there.
        assert not found[:, way][real][:, :, 1 - way, 1 - way].any()


def seen_of_gold(config, layout):
    """Inputs and labels of two targets, and what the predictions depend on in their inputs."""
    inputs_BPWT = np.zeros((2, 1, 2, 8), np.int32)
    labels_BPWT = np.zeros_like(inputs_BPWT)
    for b, n in enumerate(LENGTHS):
        # No token twice, so that a label is in one place only.
        target = FIRST_TEXT_ID + np.random.default_rng(b).permutation(n).astype(np.int32)
        tokens = Streams("both", "tags", layout).tokens(target)
        inputs_BPWT[b, ..., : len(tokens["inputs"])] = tokens["inputs"].T
        labels_BPWT[b, ..., : len(tokens["labels"])] = tokens["labels"].T
    segments_BPWT = (inputs_BPWT != 0).astype(np.int32)
    streams = (inputs_BPWT, segments_BPWT, tiny.positions(segments_BPWT))
    model = tiny.make_model(encoder_layers=1, **config)
    source = tiny.source_batch(np.ones((2, 6)))
    seen, _ = sensitivity(model, tiny.random_params(model), source, streams, interact=True)
    return inputs_BPWT[:, 0], labels_BPWT[:, 0], seen[:, 0, :, :, :, 0]


LENGTHS = (6, 7)


@pytest.mark.parametrize("config", [SEEN[0][0], SEEN[1][0], SEEN[3][0], SEEN[6][0]], ids=name)
def test_gold_partners_leak_the_second_half(config):
    """A stream's label at step t stands in the other's inputs at step n - t: seen if n - t <= t.

    That is what layout `whole` with partner `gold` is, wherever the streams read each other.
    """
    inputs_BWT, labels_BWT, seen = seen_of_gold(config, "whole")
    for b, way in itertools.product(range(2), range(2)):
        n = LENGTHS[b]
        for t in range(n):
            assert inputs_BWT[b, 1 - way, n - t] == labels_BWT[b, way, t]
            leaks = seen[b, way, t, b, 1 - way, n - t]
            assert leaks == (config["interaction"] != "none" and t >= n / 2)


@pytest.mark.parametrize("config", [SEEN[1][0], SEEN[3][0], SEEN[6][0]], ids=name)
def test_halves_leak_nothing(config):
    """Whatever a prediction depends on in the other stream, its label is not there.

    Nor is any later label of its own stream: the sum over all predictions is a log-probability.
    """
    inputs_BWT, labels_BWT, seen = seen_of_gold(config, "halves")
    reads_the_other = 0
    for b, way, t in np.argwhere(labels_BWT >= FIRST_TEXT_ID):
        read_WT = np.where(seen[b, way, t, b], inputs_BWT[b], 0)
        assert not np.isin(labels_BWT[b, way, t:], read_WT[read_WT >= FIRST_TEXT_ID]).any()
        reads_the_other += (read_WT[1 - way] >= FIRST_TEXT_ID).sum()
    assert reads_the_other > 10


ALONE = (
    {"interaction": "layers", "fusion": "tanh"},
    {"interaction": "layers", "fusion": "concat", "own_decoders": True, "norm": "post"},
    {"interaction": "top", "fusion": "linear"},
    {"recurrent": True, "interaction": "top"},
)


@pytest.mark.parametrize("config", ALONE, ids=name)
def test_the_future_is_zero_where_nothing_of_the_other_is_there(config):
    """Running alone is running beside a stream that is padding throughout."""
    model = tiny.make_model(**config)
    params = tiny.random_params(model)
    alone = tiny.decode(model, params, SOURCE, STREAMS, interact=False)
    beside = tiny.decode(model, params, SOURCE, STREAMS, interact=True)
    for way in range(2):
        inputs, segments, positions = STREAMS
        segments = segments.copy()
        segments[:, :, 1 - way] = 0
        empty = tiny.decode(model, params, SOURCE, (inputs, segments, positions), interact=True)
        real = segments[:, :, way] != 0
        np.testing.assert_allclose(empty[:, :, way][real], alone[:, :, way][real], atol=1e-5)
        # Which is not what it reads beside the other.
        assert np.abs(beside[:, :, way] - alone[:, :, way])[real].max() > 0.01


@pytest.mark.parametrize("config", [ALONE[0], ALONE[2]], ids=name)
def test_alone_is_the_model_without_interaction(config):
    """`tanh` and `linear` add a future of zero to what there is without: the same numbers."""
    model, without = tiny.make_model(**config), tiny.make_model(**config | {"interaction": "none"})
    params = tiny.random_params(model)
    alone = tiny.decode(model, params, SOURCE, STREAMS, interact=False)
    decoder = {key: value for key, value in params["decoder"].items() if key != "top"}
    found = tiny.decode(without, params | {"decoder": decoder}, SOURCE, STREAMS, interact=False)
    np.testing.assert_allclose(found, alone, atol=1e-5)


@pytest.mark.parametrize("config", [ALONE[1], ALONE[3]], ids=name)
def test_own_decoders_share_nothing_but_what_they_read(config):
    """One way's predictions use the other's parameters only when they read the other stream."""
    model = tiny.make_model(**config)
    params = tiny.random_params(model)
    mix_V = np.random.default_rng(1).standard_normal(tiny.TARGETS).astype(np.float32)

    @functools.partial(jax.jit, static_argnames="interact")
    def gradient_of_way_1(params, interact):
        def predictions(params):
            logits = tiny.decode.__wrapped__(model, params, SOURCE, STREAMS, interact)
            return ((logits @ mix_V) * (STREAMS[1] != 0))[:, :, 1].sum()

        return jax.grad(predictions)(params)["decoder"]

    def used(interact):
        """For each leaf of the decoder, whether way 1 uses that of each way."""
        gradient = jax.device_get(gradient_of_way_1(params, interact=interact))
        # By these alone a recurrent stream reads the other.
        reads_the_other = gradient.pop("qkv", {})
        if not interact:
            assert not any(leaf.any() for leaf in jax.tree.leaves(reads_the_other))
        return [leaf.reshape(2, -1).any(axis=1).tolist() for leaf in jax.tree.leaves(gradient)]

    assert all(of_way == [False, True] for of_way in used(interact=False))
    assert [True, True] in used(interact=True)


@pytest.mark.parametrize(
    ("own", "layers", "config"),
    [
        (False, 2, {"interaction": "layers"}),
        (True, 2, {"interaction": "layers", "own_decoders": True}),
        (True, 1, {"interaction": "top", "recurrent": True}),
    ],
    ids=["shared", "own", "recurrent"],
)
def test_the_source_is_never_copied_for_pairs(own, layers, config):
    """Not in what is kept of it, and nowhere in a step: nothing there is P * S * D large."""
    batch, pairs, slots, size = 2, 7, 14, 32
    model = tiny.make_model(model_size=size, **config)
    params = tiny.random_params(model)
    sources = tiny.source_batch(np.ones((batch, 40)))
    source = jax.eval_shape(
        lambda params: model.apply({"params": params}, sources, method="start"), params
    )
    shape_BGHSE = (batch, 2 if own else 1, 2, 40, size // 2)
    shapes = [x.shape for x in jax.tree.leaves(source.encoded.keys_values)]
    assert shapes == [shape_BGHSE] * 2 * layers

    def step(params, source):
        apply = functools.partial(model.apply, decoding_variables(model, params, "cpu"))
        cache = apply(batch, pairs, Room(slots, slots), method="empty_cache")
        tokens_BPW = jnp.ones((batch, pairs, 2), jnp.int32)
        place = tiny.first_place(batch, pairs, slots)
        return apply(source, cache, tokens_BPW, place, method="decode_step")

    program = str(jax.make_jaxpr(step)(params, source))
    sizes = {
        np.prod(list(map(int, s.split(",")))) for s in re.findall(r":f32\[([\d,]+)\]", program)
    }
    assert batch * 2 * 40 * size * (2 if own else 1) // 2 in sizes
    assert max(sizes) < batch * pairs * 40 * size


@pytest.mark.parametrize("interact", [True, False])
@pytest.mark.parametrize(
    ("interaction", "of_pairs"),
    [("none", []), ("top", []), ("layers", ["layers_1", "layers_2"])],
)
def test_what_does_not_depend_on_a_partner_is_computed_once(interaction, of_pairs, interact):
    """Of all combinations of streams: queries, keys and values are made, and kept, of streams."""
    batch, k = 2, 3
    model = tiny.make_model(interaction=interaction, decoder_layers=3)
    params = tiny.random_params(model)

    def step(params, combined):
        return tiny.first_step(model, params, batch, k, combined, interact)

    def pairs_of_qkv(combined):
        program = str(jax.make_jaxpr(step, static_argnums=1)(params, combined))
        shape = rf":f32\[{batch},(\d+),2,1,{3 * model.config.model_size}\] = add"
        return [int(pairs) for pairs in re.findall(shape, program)]

    layers = 3 + (interaction == "top")
    assert pairs_of_qkv(None) == [k * k] * layers
    assert pairs_of_qkv(k) == [k] * (layers - len(of_pairs)) + [k * k] * len(of_pairs)
    (prices, cache), (same, larger) = (
        jax.jit(step, static_argnums=1)(params, combined) for combined in (k, None)
    )
    np.testing.assert_allclose(prices.log_probs(), same.log_probs(), atol=1e-5)
    for name in cache:
        times = 1 if name in of_pairs else k
        assert cache[name]["keys"].size * times == larger[name]["keys"].size
