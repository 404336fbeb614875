"""Models with random parameters and vocabularies of a few letters, ready to search and score."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import numpy as np

from bidi.data import vocabulary
from bidi.data.streams import Streams
from bidi.data.vocabulary import Vocabulary, VocabularyConfig
from bidi.evaluation.found import Found, Hypothesis
from bidi.evaluation.generate import Generator
from bidi.search.config import SearchConfig
from tests.models import tiny

SOURCE_LETTERS, TARGET_LETTERS = "abcd", "vwxyz"
SOURCES = ["abc", "", "d", "dcba", "a", "   ", "abq", "cc", "bbbbbbb"]
SEARCH = SearchConfig(
    coupling="none", n_best=4, min_length=2, max_length_factor=1.5, max_length_offset=5
)
# Both markers, every interaction, shared and own decoders; seeds with which both directions end
# some of their hypotheses and are cut off in others.
MODELS = {
    "swap": {"markers": "swap", "seed": 34, "interaction": "layers", "own_decoders": True},
    "tags": {"markers": "tags", "seed": 40, "interaction": "top"},
}


@functools.cache
def vocabulary_of(letters: str) -> Vocabulary:
    pairs = ["".join(pair) for pair in itertools.product(letters, repeat=2)]
    return Vocabulary(vocabulary.train(VocabularyConfig(model_type="char"), pairs))


def make_generator(
    ways="both",
    markers="swap",
    layout="whole",
    max_source=7,
    batch_tokens=64,
    seed=0,
    params=None,
    **config,
) -> Generator:
    """A generator of one compiled shape: 7 tokens and EOS fill the shortest row.

    `params` are random unless given, and then those of a generator of the same `config`. Of a
    `joint` vocabulary sources have target letters.
    """
    streams = Streams(ways, markers, layout)
    shape = {"encoder_layers": 1, "decoder_layers": 1}
    if not config.get("recurrent"):
        shape["tied_embeddings"] = False
    joint, target = config.get("joint", False), vocabulary_of(TARGET_LETTERS)
    source = target if joint else vocabulary_of(SOURCE_LETTERS)
    model = dataclasses.replace(
        tiny.make_model(len(streams.directions), **(shape | config)),
        target_vocabulary=target.size,
        source_vocabulary=None if joint else source.size,
    )
    return Generator(
        model,
        tiny.random_params(model, seed) if params is None else params,
        streams,
        source,
        target,
        max_source,
        batch_tokens,
    )


def hypotheses(found: Sequence[Found]) -> list[Hypothesis]:
    """Those of all lists of all sources."""
    return [h for one in found for listed in one.n_best.values() for h in listed]


def assert_same(found: Sequence[Found], expected: Sequence[Found]) -> None:
    """The same hypotheses, but for rounding of their prices."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.n_best.keys() == other.n_best.keys()
        pairs = list(zip(hypotheses([one]), hypotheses([other]), strict=True))
        if one.winner or other.winner:
            pairs.append((one.winner, other.winner))
        for mine, theirs in pairs:
            assert (mine.tokens, mine.direction, mine.finished) == (
                theirs.tokens,
                theirs.direction,
                theirs.finished,
            )
            np.testing.assert_allclose(mine.log_prob, theirs.log_prob, rtol=1e-4)
            np.testing.assert_allclose(mine.score, theirs.score, rtol=1e-4)
