"""The recurrent model against its definition, one example and step at a time in numpy.

B batch, P pairs, K streams of each way, W ways, S source steps, T target steps, E examples of a
row, D model, H heads, V vocabulary.
"""

import functools
import re

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bidi.benchmarking.article import Article
from bidi.models.lstm import LSTM, begins
from bidi.models.pairing import Pairing
from bidi.models.recurrent_decoder import greatest
from bidi.search.config import SearchConfig
from bidi.search.coupling import Product
from tests.models import test_transformer_in_search as in_search
from tests.models import tiny

VARIED = settings(max_examples=30, deadline=None)


def test_the_model_is_its_definition():
    config = {"interaction": "top", "copy_prior": True, "joint": True, "encoder_layers": 2}
    model = tiny.make_model(recurrent=True, **config)
    params = tiny.random_params(model)
    segments_BS = np.array([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1]])
    segments_BPWT = np.array([[[[1, 1, 2, 2, 2, 2, 0]] * 2], [[[1, 1, 1, 1, 0, 0, 0]] * 2]])
    source, streams = tiny.source_batch(segments_BS), tiny.random_streams(segments_BPWT)
    logits = tiny.decode(model, params, source, streams, interact=True)
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    article = Article(exact, model.config, in_search.SWAP, SearchConfig("product", 3))
    for row, segment in ((0, 1), (0, 2), (1, 1)):
        here_T = segments_BPWT[row, 0, 0] == segment
        source_S = source["source"][row, segments_BS[row] == segment]
        inputs_1WT = streams[0][row][:, :, here_T]
        (expected_WTV,) = article.logits(source_S, inputs_1WT, last=False)
        np.testing.assert_allclose(logits[row, 0][:, here_T], expected_WTV, atol=1e-4)
        (last_W1V,) = article.logits(source_S, inputs_1WT, last=True)
        np.testing.assert_allclose(last_W1V, expected_WTV[:, -1:], atol=1e-12)


@pytest.mark.parametrize("partner_weights", ["equal", "score"])
def test_the_product_is_the_articles_search(partner_weights):
    """All in numpy, one sentence at a time, whole prefixes anew for each pair and step."""
    config = {"recurrent": True, "interaction": "top", "copy_prior": True, "joint": True}
    case = in_search.Case("product", 3, in_search.SWAP, config, partner_weights)
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), case.params)
    result = case.search(rows=2)
    article = Article(exact, case.model.config, case.streams, case.search_config)
    for q, segments_S in enumerate(in_search.SOURCE["source_segments"]):
        source_S = in_search.SOURCE["source"][q, segments_S == 1]

        @functools.cache
        def log_probs(way, own, partner, source_S=source_S):
            inputs_WT = case.inputs(way, own, partner)[:, : len(own) + 1]
            logits_V = article.logits(source_S, inputs_WT[None], last=True)[0, way, 0]
            return (logits_V - np.log(np.exp(logits_V).sum())).tolist()

        answer = case.reference(q, log_probs)
        in_search.assert_sentence(result, q, case, answer)
        if partner_weights == "equal":
            assert_found(article.find(source_S, int(in_search.MAX_LENGTH_Q[q])), answer, case)


def assert_found(found, answer, case):
    """What the benchmark measures finds the same."""
    for name, hypotheses in zip(case.streams.directions, answer.n_best, strict=True):
        listed = found.n_best[name]
        assert [(h.tokens, h.finished) for h in listed] == [
            (h.reading(name), h.finished) for h in hypotheses
        ]
        expected = [h.log_prob for h in hypotheses]
        np.testing.assert_allclose([h.log_prob for h in listed], expected, atol=1e-9)
    assert found.winner == found.n_best[case.streams.directions[answer.winner]][0]


SEGMENTS = hnp.arrays(np.int32, (2, 7), elements=st.integers(0, 2)).map(
    lambda x: np.sort(x, axis=1)
)


@VARIED
@given(SEGMENTS)
def test_greatest_entries_of_each_example(segments_BS):
    x_BSD = np.random.default_rng(0).standard_normal((2, 7, 3)).astype(np.float32)
    found_BED = jax.jit(greatest, static_argnums=2)(x_BSD, segments_BS, 3)
    for b, e in np.ndindex(2, 3):
        here_S = segments_BS[b] == e + 1
        expected = x_BSD[b, here_S].max(axis=0) if here_S.any() else np.zeros(3)
        np.testing.assert_array_equal(found_BED[b, e], expected)


def test_what_is_open_at_first():
    """The forget gate, the second of four."""
    lstm, x = LSTM(3), np.ones((1, 1, 2, 5), np.float32)
    params = lstm.init(jax.random.key(0), x, np.zeros((1, 1, 2), bool), None)["params"]
    np.testing.assert_array_equal(params["input"]["bias"], np.repeat([0, 1, 0, 0], 3))


def test_recurrent_kernels_are_orthogonal_at_first_and_made_one_by_one():
    """A batch of them would hang with a virtual device a core, see `lstm._orthogonal`."""
    model = tiny.make_model(recurrent=True, interaction="top")
    arguments = jax.random.key(0), model.smallest_batch()
    decomposed = re.findall(r"f32\[([\d,]+)\] = qr\b", str(jax.make_jaxpr(model.init)(*arguments)))
    assert {shape.count(",") for shape in decomposed} == {1}
    leaves = jax.tree.leaves_with_path(jax.jit(model.init)(*arguments)["params"])
    modules = {path[:-2] for path, _ in leaves if path[-2].key == "input"}
    of_lstms = [leaf for path, leaf in leaves if path[:-1] in modules]
    ways = [kernel for kernel in of_lstms if kernel.ndim == 3]
    assert ways
    for kernel_WHF in ways:
        for kernel_HF in kernel_WHF:
            np.testing.assert_allclose(kernel_HF @ kernel_HF.T, np.eye(len(kernel_HF)), atol=1e-5)
        assert abs(kernel_WHF[0] - kernel_WHF[1]).max() > 0.1


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


def test_combined_streams_are_computed_once():
    """Nothing as large as gates of all pairs is made, and the cache holds streams, not pairs."""
    batch, k = 2, 3
    model = tiny.make_model(recurrent=True, interaction="top")
    params = tiny.random_params(model)

    def step(params, combined):
        return tiny.first_step(model, params, batch, k, combined)

    def streams_of_gates(combined):
        program = str(jax.make_jaxpr(step, static_argnums=1)(params, combined))
        gates = 4 * model.config.model_size
        shapes = re.findall(rf":f32\[([\d,]+),{gates}\] = add", program)
        return {max(map(int, shape.split(","))) for shape in shapes}

    assert max(streams_of_gates(None)) == k * k
    assert max(streams_of_gates(k)) == k
    (prices, cache), (same, larger) = (
        jax.jit(step, static_argnums=1)(params, combined) for combined in (k, None)
    )
    np.testing.assert_allclose(prices.log_probs(), same.log_probs(), atol=1e-5)
    for part, whole in zip(jax.tree.leaves(cache), jax.tree.leaves(larger), strict=True):
        assert part.size * k == whole.size
