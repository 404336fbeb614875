"""The recurrent model against its definition, one example and step at a time in numpy.

B batch, P pairs, K streams of each way, W ways, S source steps, T target steps, E examples of a
row, D model, H heads, V vocabulary.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bidi.models.lstm import LSTM, begins
from bidi.models.pairing import Pairing
from bidi.models.recurrent_decoder import greatest
from bidi.search.coupling import Product
from tests.models import test_transformer_in_search as in_search
from tests.models import tiny

VARIED = settings(max_examples=30, deadline=None)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def numpy_lstm(params, x_TD):
    state = cell = np.zeros(params["kernel"].shape[0])
    states = []
    for x_D in x_TD:
        gates = numpy_dense(params["input"], x_D) + state @ params["kernel"]
        write, forget, show, new = np.split(gates, 4)
        cell = sigmoid(forget) * cell + sigmoid(write) * np.tanh(new)
        state = sigmoid(show) * np.tanh(cell)
        states.append(state)
    return np.array(states)


def numpy_dense(params, x_D):
    return x_D @ params["kernel"] + params["bias"]


def numpy_norm(x_TD):
    mean, variance = x_TD.mean(axis=-1, keepdims=True), x_TD.var(axis=-1, keepdims=True)
    return (x_TD - mean) / np.sqrt(variance + 1e-6)


def numpy_read(q_TD, k_SD, v_SD, heads, causal):
    """What attention reads, head by head."""
    read = []
    for q, k, v in zip(*(np.split(x, heads, axis=-1) for x in (q_TD, k_SD, v_SD)), strict=True):
        weights = np.exp(q @ k.T / np.sqrt(q.shape[-1]))
        weights = np.tril(weights) if causal else weights
        read.append(weights / weights.sum(axis=-1, keepdims=True) @ v)
    return np.concatenate(read, axis=-1)


def numpy_model(params, config, source_S, inputs_WT):
    """Logits [W, T, V] of one example of a joint vocabulary, by Su's description."""
    layers = {
        way: jax.tree.map(lambda leaf, way=way: leaf[way], params["decoder"]) for way in (0, 1)
    }
    embedding_VD = params["target_embedding"]["embedding"]
    x_SD = embedding_VD[source_S]
    for layer in range(config.encoder_layers):
        norm, lstms = (params["encoder"][f"{name}_{layer}"] for name in ("norm", "layer"))
        x_SD = numpy_norm(x_SD) * norm["scale"] + norm["bias"]
        forward, backward = (jax.tree.map(lambda x, i=i: x[i], lstms) for i in (0, 1))
        x_SD = np.concatenate(
            [numpy_lstm(forward, x_SD), numpy_lstm(backward, x_SD[::-1])[::-1]], axis=-1
        )
    condition_D = x_SD.max(axis=0)

    def modulated(decoder, number, x_TD):
        modulation = decoder[f"modulations_{number}"]
        hidden = np.maximum(numpy_dense(modulation["in"], condition_D), 0)
        scale, shift = np.split(numpy_dense(modulation["out"], hidden), 2)
        return numpy_norm(x_TD) * (1 + scale) + shift

    states, queries, keys, values = [], [], [], []
    for way, decoder in layers.items():
        y_TD = modulated(decoder, 0, embedding_VD[inputs_WT[way]])
        for layer in range(config.decoder_layers):
            y_TD = modulated(decoder, layer + 1, numpy_lstm(decoder[f"layers_{layer}"], y_TD))
        states.append(y_TD)
        for listed, part in zip(
            (queries, keys, values),
            np.split(numpy_dense(decoder["qkv"], y_TD), 3, axis=-1),
            strict=True,
        ):
            listed.append(part)
    logits = []
    for way, decoder in layers.items():
        attention = decoder["source_attention"]
        source_q = numpy_dense(attention["q"], states[way])
        source_k, source_v = np.split(numpy_dense(attention["kv"], x_SD), 2, axis=-1)
        read = [
            states[way],
            numpy_read(source_q, source_k, source_v, config.heads, causal=False),
            numpy_read(queries[way], keys[1 - way], values[1 - way], config.heads, causal=True),
        ]
        joined = numpy_dense(decoder["out"], np.concatenate(read, axis=-1))
        out_TD = np.where(joined > 0, joined, 0.2 * joined)
        prior = params["prior"]
        occurs_V = np.isin(np.arange(len(embedding_VD)), source_S)
        prior_V = prior["scale"] * occurs_V + prior["bias"]
        logits.append((out_TD @ params["output"]["embedding"].T + prior_V) / 2)
    return np.array(logits)


def test_the_model_is_its_definition():
    config = {"interaction": "top", "copy_prior": True, "joint": True, "encoder_layers": 2}
    model = tiny.make_model(recurrent=True, **config)
    params = tiny.random_params(model)
    segments_BS = np.array([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1]])
    segments_BPWT = np.array([[[[1, 1, 2, 2, 2, 2, 0]] * 2], [[[1, 1, 1, 1, 0, 0, 0]] * 2]])
    source, streams = tiny.source_batch(segments_BS), tiny.random_streams(segments_BPWT)
    logits = tiny.decode(model, params, source, streams, interact=True)
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    for row, segment in ((0, 1), (0, 2), (1, 1)):
        here_T = segments_BPWT[row, 0, 0] == segment
        source_S = source["source"][row, segments_BS[row] == segment]
        expected = numpy_model(exact, model.config, source_S, streams[0][row, 0][:, here_T])
        np.testing.assert_allclose(logits[row, 0][:, here_T], expected, atol=1e-4)


@pytest.mark.parametrize("partner_weights", ["equal", "score"])
def test_the_product_is_the_articles_search(partner_weights):
    """All in numpy, one sentence at a time, whole prefixes anew for each pair and step."""
    config = {"recurrent": True, "interaction": "top", "copy_prior": True, "joint": True}
    case = in_search.Case("product", 3, in_search.SWAP, config, partner_weights)
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), case.params)
    result = case.search(rows=2)
    for q, segments_S in enumerate(in_search.SOURCE["source_segments"]):
        source_S = in_search.SOURCE["source"][q, segments_S == 1]

        @functools.cache
        def log_probs(way, own, partner, source_S=source_S):
            inputs_WT = case.inputs(way, own, partner)[:, : len(own) + 1]
            logits_V = numpy_model(exact, case.model.config, source_S, inputs_WT)[way, -1]
            return (logits_V - np.log(np.exp(logits_V).sum())).tolist()

        in_search.assert_sentence(result, q, case, case.reference(q, log_probs))


SEGMENTS = hnp.arrays(np.int32, (2, 7), elements=st.integers(0, 2)).map(
    lambda x: np.sort(x, axis=1)
)


@VARIED
@given(SEGMENTS)
def test_greatest_entries_of_each_example(segments_BS):
    x_BSD = np.random.default_rng(0).standard_normal((2, 7, 3)).astype(np.float32)
    found_BED = tiny.quick_jit(greatest, static_argnums=2)(x_BSD, segments_BS, 3)
    for b, e in np.ndindex(2, 3):
        here_S = segments_BS[b] == e + 1
        expected = x_BSD[b, here_S].max(axis=0) if here_S.any() else np.zeros(3)
        np.testing.assert_array_equal(found_BED[b, e], expected)


def test_what_is_open_at_first():
    """The forget gate, the second of four."""
    lstm, x = LSTM(3), np.ones((1, 1, 2, 5), np.float32)
    params = lstm.init(jax.random.key(0), x, np.zeros((1, 1, 2), bool), None)["params"]
    np.testing.assert_array_equal(params["input"]["bias"], np.repeat([0, 1, 0, 0], 3))


def test_examples_begin_where_segments_change():
    segments = np.array([[1, 1, 2, 2, 0, 0], [0, 3, 3, 1, 1, 1]])
    expected = [[1, 0, 1, 0, 1, 0], [1, 1, 0, 1, 0, 0]]
    np.testing.assert_array_equal(begins(segments), np.array(expected, bool))


def test_pairs_are_those_of_the_product():
    product, pairing = Product(3), Pairing(3)
    x_BWK = np.random.default_rng(0).integers(99, size=(2, 2, 3))
    pairs_BPW = product.to_pairs(x_BWK)
    np.testing.assert_array_equal(pairing.pairs(x_BWK.swapaxes(1, 2)), pairs_BPW)
    np.testing.assert_array_equal(pairing.streams(pairs_BPW), x_BWK.swapaxes(1, 2))
    # What was written in the place of a pair was written by its streams.
    origins_BPWT = np.array([[8, 8], [5, 5], [-1, -1]] * 3)[None, ..., None]
    origins_BPWT = np.broadcast_to(origins_BPWT, (1, 9, 2, 4))
    expected_KW = [[8 // 3, 8 % 3], [8 // 3, 5 % 3], [8 // 3, -1]]
    np.testing.assert_array_equal(pairing.origins(origins_BPWT)[0, ..., 0], expected_KW)


def test_combined_streams_are_computed_once():
    """Nothing as large as gates of all pairs is made, and the cache holds streams, not pairs."""
    batch, k, steps = 2, 3, 4
    model = tiny.make_model(recurrent=True, interaction="top")
    params, source = tiny.random_params(model), tiny.source_batch(np.ones((batch, 5)))

    def step(params, combined):
        apply = functools.partial(model.apply, {"params": params})
        cache = apply(batch, k * k, steps, combined, method="empty_cache")
        tokens_BPW = jnp.ones((batch, k * k, 2), jnp.int32)
        where = jnp.zeros(batch, jnp.int32), jnp.zeros((*tokens_BPW.shape, steps), jnp.int32)
        encoded = apply(source, method="start")
        return apply(encoded, cache, tokens_BPW, *where, True, combined, method="decode_step")

    def streams_of_gates(combined):
        program = str(jax.make_jaxpr(step, static_argnums=1)(params, combined))
        gates = 4 * model.config.model_size
        shapes = re.findall(rf":f32\[([\d,]+),{gates}\] = add", program)
        return {max(map(int, shape.split(","))) for shape in shapes}

    assert max(streams_of_gates(None)) == k * k
    assert max(streams_of_gates(k)) == k
    (log_probs, cache), (same, larger) = (
        tiny.quick_jit(step, static_argnums=1)(params, combined) for combined in (k, None)
    )
    np.testing.assert_allclose(log_probs, same, atol=1e-5)
    for part, whole in zip(jax.tree.leaves(cache), jax.tree.leaves(larger), strict=True):
        assert part.size * k == whole.size
