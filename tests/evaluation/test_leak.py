"""The leak of models made by hand, and of real ones against their own logits.

B batch, P pairs, W ways, T target steps.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bidi.data.sources import Example
from bidi.data.streams import Streams
from bidi.evaluation import leak
from bidi.evaluation.found import Found, Hypothesis
from bidi.evaluation.generate import Generator
from bidi.tokens import EOS, FIRST_TEXT_ID, PAD
from tests.evaluation.tiny_generators import (
    SOURCE_LETTERS,
    TARGET_LETTERS,
    make_generator,
    vocabulary_of,
)
from tests.models import tiny

STREAMS = Streams("both", "swap")
HALVES = Streams("both", "swap", "halves")
VOCABULARY = vocabulary_of(TARGET_LETTERS)
SURE = 3.0  # the logit of what a copier copies; all others are 0


def ids(text: str) -> tuple[int, ...]:
    return tuple(int(token) for token in VOCABULARY.encode(text))


def wrote(left: str, right: str) -> Found:
    lists = {
        direction: (Hypothesis(ids(text), direction, -1.0, -1.0, True),)
        for direction, text in (("l2r", left), ("r2l", right))
    }
    return Found(lists, lists["l2r"][0])


NOTHING = Found({"l2r": (), "r2l": ()}, None)


@dataclasses.dataclass(frozen=True)
class Copier:
    """Stands for a model: all that it knows is what it reads of the other stream.

    Where that has been read in which the next token stands (it knows the length), it is taken over.
    """

    reads: bool = True
    interacts = True

    def apply(self, variables, *arguments, method, interact=None, examples=None):
        if method == "start":
            return None
        _, inputs_BPWT, segments_BPWT, _ = arguments
        steps_T = jnp.arange(inputs_BPWT.shape[-1])[None, None, None]
        lengths_BPW1 = segments_BPWT.sum(axis=-1, keepdims=True)[:, :, ::-1] - 1
        place_BPWT = lengths_BPW1 - steps_T
        seen_BPWT = (place_BPWT >= 1) & (place_BPWT <= steps_T) & self.reads & interact
        copied_BPWT = jnp.take_along_axis(
            inputs_BPWT[:, :, ::-1], jnp.where(seen_BPWT, place_BPWT, 0), axis=-1
        )
        copied_BPWTV = jax.nn.one_hot(copied_BPWT, VOCABULARY.size)
        return SURE * copied_BPWTV * seen_BPWT[..., None]


def generator_of(model, streams=STREAMS) -> Generator:
    source = vocabulary_of(SOURCE_LETTERS)
    return Generator(model, {}, streams, source, VOCABULARY, 7, 64)


CHANCE = math.log(VOCABULARY.size)
WRONG = math.log(math.exp(SURE) + VOCABULARY.size - 1)
RIGHT = WRONG - SURE


@pytest.mark.parametrize("markers", ["swap", "tags"])
def test_labels_shown_are_found_by_searching_the_streams(markers):
    streams = Streams("both", markers)
    for length in range(9):
        target = FIRST_TEXT_ID + np.random.default_rng(length).permutation(length)
        made = streams.tokens(target)
        places_TW, shown_TW = leak.label_places(streams, length)
        assert places_TW.shape == shown_TW.shape == (length + 1, 2)
        for step in range(length + 1):
            for way in range(2):
                label = made["labels"][step, way]
                where = target.tolist().index(label) if label in target else -1
                assert places_TW[step, way] == where
                read = made["inputs"][: step + 1, 1 - way]
                assert shown_TW[step, way] == (where >= 0 and label in read)
        # Which in whole streams is the second half.
        np.testing.assert_array_equal(shown_TW.sum(axis=0), [length // 2] * 2)


def test_halves_show_nothing():
    for length in range(9):
        places_TW, shown_TW = leak.label_places(HALVES, length)
        assert sorted(place for place in places_TW.flat if place >= 0) == list(range(length))
        assert not shown_TW.any()


@pytest.mark.parametrize("interaction", ["layers", "top"])
def test_a_model_depends_on_the_other_streams_copy_of_a_label_where_it_is_shown(interaction):
    length = 5
    target = FIRST_TEXT_ID + np.arange(length)
    inputs_WT = STREAMS.tokens(target)["inputs"].T
    # One row for each way's token, changed in that way's stream alone; and one as it is.
    rows = [(way, step) for way in range(2) for step in range(1, length + 1)]
    inputs_BPWT = np.tile(inputs_WT, (len(rows) + 1, 1, 1, 1))
    for row, (way, step) in enumerate(rows):
        inputs_BPWT[row, 0, way, step] += 1
    ones = np.ones_like(inputs_BPWT)
    model = tiny.make_model(decoder_layers=1, interaction=interaction)
    source = {key: np.repeat(x, len(ones), 0) for key, x in tiny.source_batch([[1] * 4]).items()}
    logits_BWTV = tiny.decode(
        model,
        tiny.random_params(model),
        source,
        (inputs_BPWT, ones, tiny.positions(ones)),
        interact=True,
    )[:, 0]
    changed_BWT = np.abs(logits_BWTV[:-1] - logits_BWTV[-1:]).max(axis=-1) > 1e-4
    places_TW, shown_TW = leak.label_places(STREAMS, length)
    for row, (way, step) in enumerate(rows):
        place = inputs_WT[way, step] - FIRST_TEXT_ID
        (predicted,) = np.flatnonzero(places_TW[:, 1 - way] == place)
        assert changed_BWT[row, 1 - way, predicted] == shown_TW[predicted, 1 - way]


def test_a_copier_leaks_as_much_as_it_copies():
    # From the right, one token of five is wrong: the fourth, which l2r must predict, seeing it.
    examples = [Example("abc", ("vwxyz", "zz")), Example("", ("v",)), Example("d", ("w",))]
    found = [wrote("vwxyz", "vwxzz"), NOTHING, wrote("w", "w")]
    result = leak.measure(generator_of(Copier()), examples, found)
    assert result["examples"] == 2
    assert result["same_outputs"] == 50
    left, right, both = (*result["directions"].values(), result["both"])

    assert left["shown"]["labels"] == right["shown"]["labels"] == 2
    assert left["shown"]["cross_entropy"] == pytest.approx(
        {"gold": RIGHT, "searched": (RIGHT + WRONG) / 2, "hidden": CHANCE}
    )
    assert left["shown"]["leak"]["difference"] == pytest.approx(SURE / 2)
    assert left["shown"]["accuracy"] == {"gold": 100, "searched": 50, "hidden": 0}
    assert right["shown"]["leak"]["difference"] == 0
    assert both["shown"]["leak"]["difference"] == pytest.approx(SURE / 4)
    for summary in (left, right, both):
        for part in ("unseen", "end"):
            assert summary[part]["cross_entropy"] == pytest.approx(
                dict.fromkeys(leak.CONDITIONS, CHANCE)
            )
            assert summary[part]["leak"] == {"difference": 0, "low": 0, "high": 0, "p": 1}
        assert (
            summary["unseen"]["labels"] + summary["shown"]["labels"] + summary["end"]["labels"]
            == (summary["all"]["labels"])
        )
    assert left["unseen"]["labels"] == 4  # v, w, x; w
    assert left["all"]["leak"]["difference"] == pytest.approx(SURE / 8)

    assert left["copied"] == {
        "gold": 100,
        "shown": 2,
        "searched": 100,
        "hidden": 0,
        "wrong": {"shown": 1, "searched": 100, "hidden": 0},
    }
    assert right["copied"]["wrong"] == {"shown": 0, "searched": None, "hidden": None}

    # The fourth of five begins at 60 %.
    assert left["by_position"]["labels"] == [2, 0, 1, 0, 1, 0, 1, 0, 1, 0]
    searched = left["by_position"]["cross_entropy"]["searched"]
    assert searched[6] == pytest.approx(WRONG)
    assert searched[8] == pytest.approx(RIGHT)
    assert searched[1] is None
    assert right["by_position"]["cross_entropy"]["searched"][6] == pytest.approx(RIGHT)
    assert left["by_step"]["labels"] == [2, 1, 1, 1, 1]
    assert left["by_step"]["accuracy"]["searched"] == [0, 0, 0, 0, 100]


def test_what_is_not_read_leaks_exactly_nothing():
    examples = [Example("abc", ("vwxyz",)), Example("d", ("ww",))]
    found = [wrote("vwxyv", "zzx"), wrote("w", "zw")]
    result = leak.measure(generator_of(Copier(reads=False)), examples, found)
    for summary in (*result["directions"].values(), result["both"]):
        for part in ("all", *leak.PARTS):
            assert summary[part]["leak"] == {"difference": 0, "low": 0, "high": 0, "p": 1}


def test_halves_have_no_label_that_leaks():
    output = Hypothesis(ids("vwzy"), "joint", -1.0, -1.0, True)
    found = [Found({"joint": (output,)}, output)]
    result = leak.measure(generator_of(Copier(), HALVES), [Example("abc", ("vwxyz",))], found)
    assert result["same_outputs"] is None
    assert result["both"]["shown"]["labels"] == 0
    assert result["both"]["shown"]["leak"] is None
    assert result["both"]["copied"]["shown"] == 0
    # Three tokens from the left, two from the right.
    assert result["directions"]["l2r"]["by_position"]["labels"] == [1, 0, 1, 0, 1, 0, 0, 0, 0, 0]
    assert result["directions"]["r2l"]["by_position"]["labels"] == [1, 0, 1, 0, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("partner", ["", "v", "zw", "vwx", "vwxyz", "zzvwxyz"])
def test_a_copy_stands_where_the_label_would(partner):
    """As far from where the stream began; and read by then, from the other end."""
    tokens, gold = ids(partner), ids("vwxy")
    for way in range(2):
        labels = leak._of_stream(
            STREAMS, 0, way, gold, tokens, np.zeros((3, 9)), np.zeros((3, 9), np.int32)
        )
        for step, copy in enumerate(labels.copy_L):
            read = len(tokens) - step <= step < len(tokens)
            from_start = tokens if way == 0 else tokens[::-1]
            assert copy == (from_start[step] if read else PAD)
    assert len(labels.copy_L) == len(gold) + 1


@functools.cache
def reader() -> Generator:
    """A model of random parameters whose streams read each other."""
    return make_generator(interaction="layers", own_decoders=True, seed=5)


def test_labels_are_priced_as_the_model_prices_them_alone():
    """Without padding or neighbours, and picked by hand."""
    generator = reader()
    examples = [Example("abc", ("vwxyz",)), Example("d", ("zw",)), Example("cbad", ("yyx",))]
    found = [wrote("vwx", "zzwyz"), wrote("zwvvv", "z"), wrote("yyx", "xyy")]
    labels = leak._price(generator, examples, found)
    differing = 0
    for number in range(2):
        gold, source = ids(examples[number].targets[0]), examples[number].source
        for way, direction in enumerate(STREAMS.directions):
            other = found[number].n_best[STREAMS.directions[1 - way]][0].tokens
            mine = labels.where((labels.example_L == number) & (labels.way_L == way))
            expected = [
                by_hand(generator, source, gold, way, partner, interact)
                for partner, interact in ((gold, True), (other, True), (gold, False))
            ]
            nll_CT, predicted_CT = (np.stack(part) for part in zip(*expected, strict=True))
            np.testing.assert_allclose(mine.nll_LC, nll_CT.T, rtol=1e-4, atol=1e-5)
            np.testing.assert_array_equal(mine.predicted_LC, predicted_CT.T)
            end = STREAMS.ends[way]
            assert mine.label_L.tolist() == [*(gold if direction == "l2r" else gold[::-1]), end]
            differing += np.abs(np.diff(nll_CT, axis=0)).max() > 0.01
    assert differing == 4


def by_hand(generator, source, gold, way, partner, interact):
    """Negative log-likelihood of a stream's labels beside a partner, and what it predicts."""
    steps = max(len(gold), len(partner)) + 1
    inputs_BPWT = np.zeros((1, 1, 2, steps), np.int32)
    for place, tokens in ((way, gold), (1 - way, partner)):
        inputs_T = STREAMS.tokens(np.array(tokens))["inputs"][:, place]
        inputs_BPWT[0, 0, place, : len(inputs_T)] = inputs_T
    segments_BPWT = (inputs_BPWT != PAD).astype(np.int32)
    letters = np.append(vocabulary_of(SOURCE_LETTERS).encode(source), EOS)
    batch = tiny.source_batch([[1] * len(letters)]) | {"source": letters[None]}
    streams = (inputs_BPWT, segments_BPWT, tiny.positions(np.ones_like(inputs_BPWT)))
    logits = tiny.decode(generator.model, generator.params, batch, streams, interact=interact)
    log_probs_TV = np.asarray(jax.nn.log_softmax(logits))[0, 0, way, : len(gold) + 1]
    labels = STREAMS.tokens(np.array(gold))["labels"][:, way]
    return -log_probs_TV[np.arange(len(labels)), labels], log_probs_TV.argmax(axis=-1)


def test_the_price_is_the_score():
    sources, outputs = ["abc", "d"], [[ids("vwxyz"), ids("z")], [ids("x"), ids("yy")]]
    scores = reader().score(sources, outputs)
    # Alone, a stream's price is its own whatever stands beside it.
    prices = reader().price(sources, outputs, [(0, 1)], interact=False)
    for of_source, listed, priced in zip(scores, outputs, prices, strict=True):
        for way, direction in enumerate(STREAMS.directions):
            total = priced.log_probs_PWT[0, way, : len(listed[way]) + 1].sum()
            np.testing.assert_allclose(total, of_source[direction][way], rtol=1e-4)
