"""The search with a model's cache against the oracle, which runs the model on whole prefixes.

B rows, Q sentences in the queue, P pairs, W ways, N n-best, T steps, V vocabulary.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bidi.data.streams import Streams
from bidi.models.model import decoding_variables
from bidi.search.beam_search import BeamSearchResult, Markers, beam_search
from bidi.search.config import SearchConfig
from bidi.search.slots import whole_room
from bidi.tokens import FIRST_TEXT_ID
from tests.models import tiny
from tests.search import joint_oracle, oracle

STEPS = 6
MAX_LENGTH_Q = np.array([6, 4, 5], np.int32)
SOURCE = tiny.source_batch([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
SWAP, TAGS, ONE_WAY = Streams("both", "swap"), Streams("both", "tags"), Streams("r2l", "tags")
HALVES = Streams("both", "swap", "halves")


@functools.partial(jax.jit, static_argnames=("model", "streams", "config", "rows"))
def run_search(model, params, streams, config, rows) -> BeamSearchResult:
    apply = functools.partial(model.apply, decoding_variables(model, params, "cpu"))
    source = apply(SOURCE, method="start")
    interact = config.coupling != "none"
    coupling = config.make_coupling(model.ways)
    combined, room = coupling.combined, whole_room(coupling, STEPS, model.keeps_pairs)

    def decode_step(cache, tokens_BPW, place):
        at_work = source.rows(place.sentence_B)
        return apply(at_work, cache, tokens_BPW, place, interact, combined, method="decode_step")

    allowed_WV = np.tile(np.arange(tiny.TARGETS) >= FIRST_TEXT_ID, (model.ways, 1))
    allowed_WV[np.arange(model.ways), streams.ends] = True
    return beam_search(
        decode_step,
        apply(rows, coupling.pairs, room, combined, method="empty_cache"),
        markers=Markers(streams.directions, streams.starts, streams.ends, allowed_WV),
        max_length_Q=jnp.asarray(MAX_LENGTH_Q),
        rows=rows,
        steps=STEPS,
        room=room,
        config=config,
    )


@dataclasses.dataclass(frozen=True)
class Case:
    coupling: str
    hypotheses: int
    streams: Streams
    config: dict
    partner_weights: str = "equal"

    def search(self, rows: int) -> BeamSearchResult:
        """The search of all sentences, so many at a time."""
        arguments = self.model, self.params, self.streams, self.search_config, rows
        return jax.device_get(run_search(*arguments))

    @property
    def search_config(self) -> SearchConfig:
        beam_size = self.hypotheses * (2 if self.coupling == "paired" else 1)
        return SearchConfig(self.coupling, beam_size, self.partner_weights, n_best=self.hypotheses)

    def reference(self, sentence: int, log_probs: oracle.LogProbs | None = None) -> oracle.Answer:
        """The oracle's search of one; by `log_probs`, or by the model on whole prefixes."""
        texts = tuple(range(FIRST_TEXT_ID, tiny.TARGETS))
        task = oracle.Task(
            ways=self.streams.directions,
            end=self.streams.ends,
            allowed=tuple((end, *texts) for end in self.streams.ends),
            max_length=int(MAX_LENGTH_Q[sentence]),
            coupling=self.coupling,
            partner_weights=self.partner_weights,
            hypotheses=self.hypotheses,
            n_best=self.hypotheses,
            length_penalty="gnmt",
            alpha=0.6,
        )
        definition = joint_oracle if self.coupling == "joint" else oracle
        return definition.reference_search(log_probs or self.log_probs(sentence), task)

    def inputs(self, way, own, partner) -> np.ndarray:
        """What the streams read, [W, T]."""
        inputs_WT = np.zeros((len(self.streams.directions), STEPS), np.int32)
        for w, written in ((1 - way, partner), (way, own)):
            if written is not None:
                inputs_WT[w, : len(written) + 1] = self.streams.starts[w], *written
        return inputs_WT

    def log_probs(self, sentence: int) -> oracle.LogProbs:
        """The model on whole prefixes."""
        source = {key: value[sentence : sentence + 1] for key, value in SOURCE.items()}

        @functools.cache
        def log_probs(way, own, partner):
            inputs_WT = self.inputs(way, own, partner)
            segments_WT = (inputs_WT != 0).astype(np.int32)
            streams = (inputs_WT, segments_WT, tiny.positions(segments_WT))
            streams = tuple(x[None, None] for x in streams)
            interact = partner is not None
            logits = tiny.decode(self.model, self.params, source, streams, interact=interact)
            logits_V = np.asarray(logits, np.float64)[0, 0, way, len(own)]
            return (logits_V - np.log(np.exp(logits_V).sum())).tolist()

        return log_probs

    @property
    def model(self):
        return tiny.make_model(len(self.streams.directions), **self.config)

    @functools.cached_property
    def params(self):
        return tiny.random_params(self.model)


RECURRENT = {"recurrent": True, "interaction": "top"}
EXACT = {
    "none, one way": Case("none", 4, ONE_WAY, {"norm": "post"}),
    "none, a model that interacts": Case("none", 3, SWAP, {"interaction": "layers"}),
    "product, none": Case("product", 2, SWAP, {"interaction": "none", "own_decoders": True}),
    "product, top": Case("product", 3, SWAP, {"interaction": "top", "own_decoders": True}),
    "product, layers": Case("product", 3, TAGS, {"interaction": "layers", "fusion": "concat"}),
    "joint, layers": Case("joint", 4, HALVES, {"interaction": "layers", "fusion_weight": 1.0}),
    "joint, top": Case("joint", 3, HALVES, {"interaction": "top", "own_decoders": True}),
    "paired, none": Case("paired", 4, TAGS, {"interaction": "none", "tied_embeddings": False}),
    "paired, top": Case("paired", 4, SWAP, {"interaction": "top", "fusion": "gate"}),
    "paired, one layer": Case(
        "paired", 4, SWAP, {"interaction": "layers", "decoder_layers": 1, "own_decoders": True}
    ),
    "none, recurrent": Case("none", 3, ONE_WAY, {"recurrent": True}),
    "product, recurrent": Case("product", 3, SWAP, RECURRENT),
    "product by score, recurrent": Case("product", 3, TAGS, RECURRENT, "score"),
    "joint, recurrent": Case("joint", 3, HALVES, RECURRENT),
    "paired, recurrent": Case("paired", 4, TAGS, RECURRENT),
}


# A row takes one sentence after another whatever the model is; in one run each has one of its own.
RUNS = [
    pytest.param(case, 3 if name == "product, layers" else 2, id=name)
    for name, case in EXACT.items()
]


@pytest.mark.parametrize(("case", "rows"), RUNS)
def test_search_with_a_cache_is_search_over_whole_prefixes(case, rows):
    result = case.search(rows)
    for q in range(len(MAX_LENGTH_Q)):
        assert_sentence(result, q, case, case.reference(q))


def assert_sentence(result: BeamSearchResult, q: int, case: Case, answer: oracle.Answer) -> None:
    """Sentence q of the result is the oracle's answer."""
    for way, hypotheses in enumerate(answer.n_best):
        expected = [(h.reading(case.streams.writers[way]), h.finished) for h in hypotheses]
        lengths_N, finished_N = result.lengths_QGN[q, way], result.finished_QGN[q, way]
        tokens_NT = result.tokens_QGNT[q, way]
        found = [
            (tuple(tokens_NT[n, : lengths_N[n]]), finished_N[n]) for n in range(len(lengths_N))
        ]
        assert found == expected
        log_probs = [hypothesis.log_prob for hypothesis in hypotheses]
        np.testing.assert_allclose(result.log_probs_QGN[q, way], log_probs, atol=1e-4)
    assert result.winner_Q[q] == answer.winner


def test_pairs_by_rank_are_approximate_in_deeper_layers():
    """As `ByRank` says: a stream's deeper entries were computed beside a former partner."""
    case = Case("paired", 4, SWAP, {"interaction": "layers", "decoder_layers": 2})
    answers = [case.reference(q) for q in range(len(MAX_LENGTH_Q))]
    exact_QGN = [[[h.log_prob for h in listed] for listed in one.n_best] for one in answers]
    assert np.abs(case.search(rows=2).log_probs_QGN - np.array(exact_QGN)).max() > 0.01
