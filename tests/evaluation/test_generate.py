"""Search and scores of models with random parameters.

P candidates, W ways, T target steps.
"""

import functools

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bidi.data import vocabulary
from bidi.data.vocabulary import Vocabulary, VocabularyConfig
from bidi.evaluation.found import Found, Hypothesis, Tally
from bidi.search.config import SearchConfig
from bidi.tokens import EOS, FIRST_TEXT_ID
from tests.evaluation.tiny_generators import (
    MODELS,
    SEARCH,
    SOURCE_LETTERS,
    SOURCES,
    assert_same,
    hypotheses,
    make_generator,
    vocabulary_of,
)
from tests.models import tiny

PAIRED = SearchConfig(n_best=2, max_length_factor=1.5, max_length_offset=5)


@functools.cache
def generator_of(name):
    return make_generator(**MODELS[name])


def test_a_text_has_one_line(monkeypatch):
    lines = VocabularyConfig(model_type="char", normalization="identity")
    vocabulary_of_lines = Vocabulary(vocabulary.train(lines, ["ab\r\ncd\n"]))
    generator = make_generator()
    monkeypatch.setattr(generator, "target_vocabulary", vocabulary_of_lines)
    tokens = tuple(vocabulary_of_lines.encode("a\r\nb\nc\u2028d").tolist())
    assert "\n" in vocabulary_of_lines.decode(tokens)
    assert generator.text(Hypothesis(tokens, "l2r", -1.0, -1.0, True)) == "a b c \u2047 d"


@functools.cache
def found_by(name):
    return generator_of(name).search(SOURCES, SEARCH)


@functools.cache
def two_shapes():
    """An interacting model whose sources fall into rows of two lengths."""
    return make_generator(max_source=12, seed=3, interaction="layers")


MANY_SOURCES = [*SOURCES, "abcdabcdabcd", "ddddccccb", "ba", "abcdabcdabcda"]


@functools.cache
def found_in_many():
    return two_shapes().search(MANY_SOURCES, PAIRED)


@given(st.lists(st.integers(0, len(MANY_SOURCES) - 1), max_size=20))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_neighbours_and_order_change_nothing(places):
    found = two_shapes().search([MANY_SOURCES[place] for place in places], PAIRED)
    assert_same(found, [found_in_many()[place] for place in places])


def test_a_source_alone_is_searched_as_among_others():
    for source, among_others in zip(MANY_SOURCES, found_in_many(), strict=True):
        assert_same(two_shapes().search([source], PAIRED), [among_others])


def test_the_winner_alone_is_found_sooner():
    whole, alone = Tally(), Tally()
    expected = generator_of("swap").search(MANY_SOURCES, PAIRED, whole)
    found = generator_of("swap").search(MANY_SOURCES, PAIRED, alone, winner_only=True)
    assert_same(found, [one.winner_alone for one in expected])
    assert [hypotheses([one]) for one in found] == [
        [one.winner] if one.winner else [] for one in found
    ]
    assert alone.row_steps_needed < whole.row_steps_needed


def test_devices_and_batch_size_change_nothing(monkeypatch):
    """Three rows on one device, elsewhere eight on eight."""
    assert jax.local_device_count() == 8
    # The other generator must be made before it is told that there is one device.
    assert generator_of("swap")._batching.device_count == 8
    device, *_ = jax.local_devices()
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    generator, tally = make_generator(batch_tokens=24, **MODELS["swap"]), Tally()
    assert_same(generator.search(SOURCES, SEARCH, tally), found_by("swap"))
    assert (tally.sentences, tally.batches) == (9, 1)
    assert tally.row_steps_run % 3 == 0
    outputs = [[h.tokens for h in one.all] for one in found_by("swap")]
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4),
        generator.score(SOURCES, outputs),
        generator_of("swap").score(SOURCES, outputs),
    )


@pytest.mark.parametrize("name", MODELS)
def test_the_search_reports_what_the_score_is(name):
    outputs = [[h.tokens for h in one.all] for one in found_by(name)]
    scores = generator_of(name).score(SOURCES, outputs)
    compared = {"l2r": 0, "r2l": 0}
    for one, tokens, of_source in zip(found_by(name), outputs, scores, strict=True):
        for direction, listed in one.n_best.items():
            assert of_source[direction].shape == (len(tokens),)
            assert of_source[direction].dtype == np.float32
            for h in listed:
                score = of_source[direction][tokens.index(h.tokens)]
                if h.finished:
                    compared[direction] += 1
                    np.testing.assert_allclose(h.log_prob, score, rtol=1e-4)
                else:  # without the end marker's share
                    assert h.log_prob > score
    assert min(compared.values()) > 5


@pytest.mark.parametrize(("name", "interact"), [("swap", False), ("swap", True), ("tags", True)])
def test_scores_are_those_of_the_streams_of_one_candidate(name, interact):
    """Each candidate by itself, without padding, and its labels picked by hand."""
    generator = generator_of(name)
    sources, candidates = ["cbad", "abqd"], [[(6, 9, 7), (8, 8, 8), (10, 6, 6)], [(7, 9, 10)]]
    scores = generator.score(sources, candidates, interact)
    alone = generator.score(sources, candidates)
    for one, other in zip(scores, alone, strict=True):
        for direction in generator.streams.writers:
            assert (abs(one[direction] - other[direction]) > 1e-3).all() == interact
    for source, listed, of_source in zip(sources, candidates, scores, strict=True):
        batch = tiny.source_batch([[1] * 5])
        batch["source"] = np.append(vocabulary_of(SOURCE_LETTERS).encode(source), EOS)[None]
        for place, tokens in enumerate(listed):
            streams = generator.streams.tokens(np.array(tokens))
            inputs_BPWT = streams["inputs"].T[None, None]
            ones = np.ones_like(inputs_BPWT)
            logits = tiny.decode(
                generator.model,
                generator.params,
                batch,
                (inputs_BPWT, ones, tiny.positions(ones)),
                interact=interact,
            )
            log_probs_WTV = jax.nn.log_softmax(logits)[0, 0]
            for way, direction in enumerate(generator.streams.directions):
                by_hand = sum(
                    log_probs_WTV[way, step, label]
                    for step, label in enumerate(streams["labels"][:, way])
                )
                np.testing.assert_allclose(of_source[direction][place], by_hand, rtol=1e-4)


def test_scores_do_not_depend_on_the_other_candidates():
    generator = generator_of("tags")
    sources = ["abc", "d", "dcba", ""]
    candidates = [[(6,), (7, 8, 9), (), (6,), (10,) * 7], [(9, 9)], [], [(6, 7)]]
    together_ = generator.score(sources, candidates)
    assert [scores["l2r"].shape for scores in together_] == [(5,), (1,), (0,), (1,)]
    for source, listed, scores in zip(sources, candidates, together_, strict=True):
        for place, tokens in enumerate(listed):
            (alone,) = generator.score([source], [[tokens]])
            for direction in ("l2r", "r2l"):
                assert np.isfinite(scores[direction][place])
                np.testing.assert_allclose(scores[direction][place], alone[direction][0], rtol=1e-4)
    np.testing.assert_array_equal(together_[0]["r2l"][0], together_[0]["r2l"][3])


def test_a_model_without_interaction_cannot_score_with_it():
    generator = make_generator()
    assert not generator.interacts
    with pytest.raises(ValueError, match="streams do not read each other"):
        generator.score(["abc"], [[(6,)]], interact=True)


def test_nothing_is_asked_for():
    assert generator_of("tags").search([], SEARCH) == []
    assert generator_of("tags").score([], []) == []


@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_text_within_bounds(name):
    found = found_by(name)
    written = hypotheses(found)
    assert {token for h in written for token in h.tokens} <= set(range(FIRST_TEXT_ID, 11))
    assert len({token for h in written for token in h.tokens}) > 3
    vocabulary = generator_of(name).target_vocabulary
    for source, one in zip(SOURCES, found, strict=True):
        most = SEARCH.max_length(len(source.strip()))
        for h in hypotheses([one]):
            assert SEARCH.min_length <= len(h.tokens)
            assert len(h.tokens) + 1 <= most if h.finished else len(h.tokens) == most
            assert generator_of(name).text(h) == "".join(vocabulary.pieces(h.tokens))
            penalty = ((5 + len(h.tokens) + h.finished) / 6) ** SEARCH.alpha
            np.testing.assert_allclose(h.score, h.log_prob / penalty, rtol=1e-5)
    assert {h.finished for h in written} == {True, False}


@pytest.mark.parametrize("name", MODELS)
def test_an_empty_source_has_no_output_and_keeps_its_place(name):
    for source, one in zip(SOURCES, found_by(name), strict=True):
        if source.strip():
            assert {len(listed) for listed in one.n_best.values()} == {4}
        else:
            assert one == Found({"l2r": (), "r2l": ()}, None)
            assert one.all == ()
    assert generator_of(name).text(None) == ""


@pytest.mark.parametrize("name", MODELS)
def test_the_better_first_hypothesis_wins(name):
    winners = [one.winner for one in found_by(name) if one.winner]
    for one in found_by(name):
        firsts = [listed[0] for listed in one.n_best.values() if listed]
        assert one.winner == max(firsts, key=lambda h: (h.finished, h.score), default=None)
    assert {h.direction for h in winners} == {"l2r", "r2l"}


def test_a_source_too_long_is_cut_and_counted():
    tally = Tally()
    sources = ["abcdabcd", "abcdabc", "abcdabcdbb"]
    found = generator_of("swap").search(sources, SEARCH, tally)
    assert (tally.sentences, tally.truncated, tally.batches) == (3, 2, 1)
    assert 3 <= tally.row_steps_needed <= 3 * SEARCH.max_length(7)
    # Each of eight devices has a row: five of them nothing to do, which takes a step to see.
    assert tally.row_steps_run == tally.row_steps_needed + 5
    assert_same(found[::2], [found[1]] * 2)
    generator_of("swap").search(sources, SEARCH, tally)
    assert (tally.sentences, tally.truncated, tally.batches) == (6, 4, 2)


JOINT = SearchConfig("joint", n_best=4, max_length_factor=1.5, max_length_offset=5)


@pytest.mark.parametrize(
    "config",
    [
        {"seed": 1, "interaction": "layers", "own_decoders": True},
        {"seed": 25, "interaction": "top", "recurrent": True},
    ],
    ids=["transformer", "recurrent"],
)
def test_halves_are_one_list_whose_scores_are_those_of_whole_outputs(config):
    generator = make_generator(layout="halves", **config)
    found = generator.search(SOURCES, JOINT)
    outputs = [[h.tokens for h in one.all] for one in found]
    lengths = set()
    for one, tokens, scores in zip(found, outputs, generator.score(SOURCES, outputs), strict=True):
        assert one.n_best.keys() == scores.keys() == {"joint"}
        assert one.winner == next(iter(one.n_best["joint"]), None)
        assert len(set(tokens)) == len(one.n_best["joint"])
        for h in one.n_best["joint"]:
            assert h.direction == "joint"
            assert {FIRST_TEXT_ID <= token < 11 for token in h.tokens} <= {True}
            score = scores["joint"][tokens.index(h.tokens)]
            if h.finished:
                lengths.add(len(h.tokens))
                np.testing.assert_allclose(h.log_prob, score, rtol=1e-4)
    assert {length % 2 for length in lengths} == {0, 1}


def test_one_hypothesis_a_direction_is_a_pair_or_a_product():
    generator = make_generator(interaction="top", recurrent=True)
    bounds = {"max_length_factor": 1.5, "max_length_offset": 5}
    pair, product = (
        generator.search(SOURCES, SearchConfig(coupling, beam, **bounds))
        for coupling, beam in (("paired", 2), ("product", 1))
    )
    assert_same(product, pair)
