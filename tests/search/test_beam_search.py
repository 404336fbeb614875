"""The search against its definitions: an oracle that reads whole prefixes.

B rows, Q sentences in the queue, P pairs, W ways, N n-best, T steps, V vocabulary.
"""

import dataclasses
import functools

import jax
import jax.extend
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bidi.search.beam_search import BeamSearchResult
from bidi.search.config import SearchConfig
from tests.search import tables
from tests.search.cases import BATCH, L2R, R2L, Case, assert_sentence, compiled, jit_search, search
from tests.search.tables import Sentence

CASES = (
    Case("none", 1, 5, ways=L2R, penalty="plain", alpha=0.0),
    Case("none", 2, 4, 2, markers="tags", texts=(3, 3)),
    Case("none", 3, 5, 3, ways=R2L, penalty="plain", alpha=1.3, min_length=0),
    Case("none", 4, 5, 4, alpha=0.0, min_length=2),
    Case("none", 4, 4, 3, texts=(3, 1), alpha=-0.7, min_length=0, rank_unfinished=True),
    Case("paired", 2, 4, penalty="plain", alpha=-0.5),
    Case("paired", 4, 5, 2, markers="tags", min_length=2),
    Case("paired", 6, 5, 3, alpha=1.7, min_length=0, rank_unfinished=True),
    Case("paired", 8, 4, 4, texts=(1, 1), alpha=0.0, min_length=0),
    Case("product", 1, 4, penalty="plain", alpha=0.7),
    Case("product", 2, 5, 2, markers="tags", texts=(3, 3), min_length=2),
    Case("product", 3, 4, 3, texts=(3, 1), alpha=-0.7, min_length=0, rank_unfinished=True),
    Case("product", 3, 5, 2, alpha=0.0, partner_weights="score"),
    Case("joint", 1, 6, penalty="plain", alpha=0.0),
    Case("joint", 2, 7, 2, markers="tags", texts=(3, 3), min_length=2),
    Case("joint", 3, 8, 3, texts=(3, 1), alpha=-0.7, min_length=0, rank_unfinished=True),
    Case("joint", 4, 9, penalty="plain", alpha=1.2),
)
# Beams that hold every candidate of every step: 2^(T-1) prefixes, each extended by 3 tokens.
WIDE = (
    Case("none", 24, 4, 24, ways=L2R, penalty="plain", alpha=0.0, min_length=0),
    Case("none", 24, 4, 24, markers="tags", alpha=-0.7, rank_unfinished=True),
    Case("paired", 48, 4, 24, penalty="plain", alpha=0.6, min_length=0),
    Case("product", 12, 3, 12, markers="tags", min_length=0),
    Case("product", 12, 3, 2, penalty="plain", alpha=-1.2, rank_unfinished=True),
    Case("product", 12, 3, 12, alpha=0.0, min_length=0, partner_weights="score"),
    Case("joint", 24, 4, 24, penalty="plain", alpha=0.6, min_length=0),
    Case("joint", 90, 6, 5, markers="tags", alpha=-0.7),
    Case("joint", 90, 5, 90, alpha=0.6, min_length=0, rank_unfinished=True),
)
# One of each coupling, each of another kind: all of them take seconds to compile.
NOT_SLOW = {WIDE[i] for i in (1, 2, 5, 7)}


def name(case: Case) -> str:
    unfinished = "-unfinished" if case.rank_unfinished else ""
    ways = "+".join(case.ways) + ("" if case.partner_weights == "equal" else "-by_score")
    return (
        f"{case.coupling}{case.beam}-{ways}-{case.markers}-{case.penalty}{case.alpha}{unfinished}"
    )


@pytest.mark.parametrize("case", CASES, ids=name)
def test_search_is_its_definition(case):
    @settings(max_examples=40, deadline=None)
    @given(sentences=case.sentences())
    def check(sentences):
        result = search(case, sentences)
        answers = [case.reference(sentence) for sentence in sentences]
        for b, answer in enumerate(answers):
            if not answer.close:
                assert_sentence(result, b, case, answer)
        # It stops no later than the plain bound allows: nothing else holds a sentence back.
        if not any(answer.close for answer in answers):
            assert result.steps <= max(answer.steps for answer in answers)

    check()


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=() if case in NOT_SLOW else pytest.mark.slow) for case in WIDE],
    ids=name,
)
def test_a_wide_beam_is_exhaustive_enumeration(case):
    @settings(max_examples=15, deadline=None)
    @given(sentences=case.sentences())
    def check(sentences):
        result = search(case, sentences)
        for b, sentence in enumerate(sentences):
            answer = case.everything(sentence)
            if not answer.close:
                assert_sentence(result, b, case, answer)

    check()


@pytest.mark.parametrize("case", WIDE, ids=name)
def test_the_oracles_agree(case):
    @settings(max_examples=8, deadline=None)
    @given(sentences=case.sentences())
    def check(sentences):
        for sentence in sentences:
            reference = case.reference(sentence)
            if not reference.close:
                everything = case.everything(sentence)
                assert reference.n_best == everything.n_best
                assert reference.winner == everything.winner

    check()


STOPPING = (
    Case("none", 2, 12, ways=R2L, markers="tags"),
    Case("none", 2, 12, ways=L2R, penalty="plain", alpha=-0.5, min_length=0),
    Case("none", 2, 12),
    Case("paired", 4, 12, 2, penalty="plain", alpha=0.2, rank_unfinished=True),
    Case("product", 2, 12),
    Case("product", 2, 12, penalty="plain", alpha=0.2, partner_weights="score"),
    Case("joint", 3, 17, 2, min_length=0),
    Case("joint", 2, 18, alpha=-0.5, rank_unfinished=True),
)


@pytest.mark.parametrize("case", STOPPING, ids=name)
def test_a_sentence_stops_when_proven_and_never_before(case):
    stopped = 0
    for seed in range(60):
        levels = 0 if case.coupling == "product" else 32
        sentence = Sentence(seed, levels, end_cost=seed % 8, max_length=case.steps - seed % 3)
        result, answer = search(case, [sentence]), case.reference(sentence)
        if not answer.close:
            assert_sentence(result, 0, case, answer)
            assert result.steps == result.steps_Q[0] <= answer.steps
            stopped += answer.steps < sentence.max_length
    assert stopped > 10


@pytest.mark.parametrize("case", [CASES[i] for i in (1, 4, 7, 11, 14, 15)], ids=name)
def test_a_search_for_the_winner_alone_finds_it(case):
    # Scores of both beams are rarely equal.
    @settings(max_examples=40, deadline=None)
    @given(sentences=case.sentences())
    def check(sentences):
        result, alone = search(case, sentences), search(case, sentences, winner_only=True)
        np.testing.assert_array_equal(alone.winner_Q, result.winner_Q)
        for q, winner in enumerate(result.winner_Q):
            for of_one, of_other in zip(_best(alone), _best(result), strict=True):
                np.testing.assert_array_equal(of_one[q, winner], of_other[q, winner])
        assert (alone.steps_Q <= result.steps_Q).all()

    check()


def _best(result: BeamSearchResult) -> tuple[np.ndarray, ...]:
    """What is said of the best hypothesis of each beam, each [Q, G, ...]."""
    n_best = (
        result.tokens_QGNT,
        result.lengths_QGN,
        result.log_probs_QGN,
        result.scores_QGN,
        result.finished_QGN,
        result.valid_QGN,
    )
    return tuple(values[:, :, 0] for values in n_best)


@pytest.mark.parametrize("case", [case for case in STOPPING if len(case.writers) == 2], ids=name)
def test_it_stops_when_the_winner_is_proven(case):
    sooner = 0
    for seed in range(60):
        levels = 0 if case.coupling == "product" else 32
        sentence = Sentence(seed, levels, end_cost=seed % 8, max_length=case.steps - seed % 3)
        result, answer = search(case, [sentence], winner_only=True), case.reference(sentence)
        if not answer.close:
            best = answer.n_best[answer.winner][0]
            tokens = best.reading(case.ways[answer.winner])
            assert result.winner_Q[0] == answer.winner
            first = 0, answer.winner, 0
            assert result.tokens_QGNT[first][: len(tokens)].tolist() == list(tokens)
            assert result.lengths_QGN[first] == len(tokens)
            assert result.finished_QGN[first] == best.finished
            assert result.steps == result.steps_Q[0] <= answer.winner_steps
            sooner += answer.winner_steps < answer.steps
    assert sooner > 10


@pytest.mark.parametrize("case", [CASES[1], CASES[7], CASES[10], CASES[12], CASES[14]], ids=name)
def test_a_sentence_does_not_depend_on_its_neighbours_or_on_padding(case):
    """Bit for bit: in another order, and alone with room for more steps than it needs."""

    def assert_same(one, b, other, c):
        for field in dataclasses.fields(one):
            if field.name != "steps":
                mine, its = getattr(one, field.name)[b], getattr(other, field.name)[c]
                if field.name == "tokens_QGNT":
                    room = min(mine.shape[-1], its.shape[-1])
                    assert not mine[..., room:].any()
                    assert not its[..., room:].any()
                    mine, its = mine[..., :room], its[..., :room]
                np.testing.assert_array_equal(mine, its, err_msg=field.name)

    longer = dataclasses.replace(case, steps=case.steps + 4)

    @settings(max_examples=15, deadline=None)
    @given(sentences=case.sentences(), order=st.permutations(range(BATCH)))
    def check(sentences, order):
        together = search(case, sentences)
        permuted = search(case, [sentences[b] for b in order])
        for b in range(BATCH):
            assert_same(together, b, search(longer, [sentences[b]]), 0)
            assert_same(together, b, permuted, order.index(b))

    check()


@pytest.mark.parametrize("case", [CASES[2], CASES[4]], ids=name)
def test_reported_log_probs_are_the_tables_along_the_tokens(case):
    @settings(max_examples=30, deadline=None)
    @given(sentences=case.sentences())
    def check(sentences):
        result = search(case, sentences)
        for b, w, n in np.argwhere(result.valid_QGN).tolist():
            table, length = case.table(sentences[b]), result.lengths_QGN[b, w, n]
            written = result.tokens_QGNT[b, w, n, :length].tolist()
            if case.ways[w] == "r2l":
                written = written[::-1]
            if result.finished_QGN[b, w, n]:
                written.append(case.end[w])
            terms = [table(w, tuple(written[:t]), None)[written[t]] for t in range(len(written))]
            assert result.log_probs_QGN[b, w, n] == sum(terms)
            assert len(written) <= sentences[b].max_length
            assert set(written) <= set(case.allowed[w])

    check()


@pytest.mark.parametrize(
    "case", [CASES[0], Case("none", 1, 5, ways=L2R, texts=(3,), alpha=-0.7)], ids=name
)
def test_beam_of_one_is_greedy(case):
    """Where longer is not better: else a beam of one also weighs the later ends of its path."""

    def greedy(sentence):
        tokens = ()
        while len(tokens) < sentence.max_length:
            row = case.table(sentence)(0, tokens, None)
            token = max(
                (token for token in sorted(case.allowed[0]) if tokens or token != case.end[0]),
                key=lambda token: row[token],
            )
            if token == case.end[0]:
                return tokens, True
            tokens = (*tokens, token)
        return tokens, False

    @settings(max_examples=40, deadline=None)
    @given(sentences=case.sentences())
    def check(sentences):
        result = search(case, sentences)
        for b, sentence in enumerate(sentences):
            tokens, finished = greedy(sentence)
            found = result.tokens_QGNT[b, 0, 0, : result.lengths_QGN[b, 0, 0]]
            assert (tuple(found.tolist()), result.finished_QGN[b, 0, 0]) == (tokens, finished)

    check()


def test_right_to_left_is_the_mirror():
    """The same table and markers, called l2r: the same hypotheses in the order they are written."""
    case = CASES[2]
    sentences = [Sentence(seed, 8, seed % 9, 1 + seed % 5) for seed in range(BATCH)]
    renamed = jit_search(
        case,
        tables.decode_step(case.end, case.size, case.stream_steps, combined=None, partners=False),
        dataclasses.replace(case.search_markers(), directions=L2R),
    )
    backward, forward = search(case, sentences), search(case, sentences, renamed)
    for field in ("lengths_QGN", "log_probs_QGN", "scores_QGN", "finished_QGN", "valid_QGN"):
        np.testing.assert_array_equal(getattr(forward, field), getattr(backward, field))
    for b, w, n in np.ndindex(forward.lengths_QGN.shape):
        length = forward.lengths_QGN[b, w, n]
        written = forward.tokens_QGNT[b, w, n, :length]
        np.testing.assert_array_equal(backward.tokens_QGNT[b, w, n, :length], written[::-1])
    assert (forward.tokens_QGNT != backward.tokens_QGNT).any()


@pytest.mark.parametrize("case", [CASES[11], CASES[14]], ids=name)
def test_one_while_loop(case):
    room = case.whole_room
    cache = tables.cache([Sentence(0, 0, 0, 3)] * 3, 2, 2, room, case.stream_steps)
    run = functools.partial(compiled(case), rows=2, room=room)
    jaxpr = jax.make_jaxpr(run)(cache, max_length_Q=np.array([3, 2, 3], np.int32))

    def loops(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name in ("while", "scan"):
                yield equation
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                yield from loops(inner)

    assert len(list(loops(jaxpr.jaxpr))) == 1


def test_no_predictions_allowed_gives_no_hypothesis():
    case, sentence = CASES[1], Sentence(2, 8, 0, 3)
    result = search(case, [Sentence(1, 8, 0, 0), *[sentence] * (BATCH - 1)])
    assert not result.valid_QGN[0].any()
    assert_sentence(result, 1, case, case.reference(sentence))


def test_pairs_and_hypotheses_of_each_coupling():
    counts = {
        (coupling, ways): (made.hypotheses, made.pairs)
        for coupling, ways in (
            ("none", 1),
            ("none", 2),
            ("paired", 2),
            ("product", 2),
            ("joint", 2),
        )
        for made in [SearchConfig(coupling=coupling, beam_size=6).make_coupling(ways)]
    }
    assert counts == {
        ("none", 1): (6, 6),
        ("none", 2): (6, 6),
        ("paired", 2): (3, 3),
        ("product", 2): (6, 36),
        ("joint", 2): (6, 6),
    }


@pytest.mark.parametrize(
    ("settings_", "ways", "message"),
    [
        ({"coupling": "paired", "beam_size": 3}, 2, "beam_size"),
        ({"coupling": "paired", "beam_size": 4}, 1, "paired"),
        ({"coupling": "product", "beam_size": 2}, 1, "product"),
        ({"coupling": "joint", "beam_size": 2}, 1, "joint"),
        ({"coupling": "paired", "beam_size": 4, "n_best": 3}, 2, "n_best"),
        ({"coupling": "none", "beam_size": 4, "n_best": 0}, 2, "n_best"),
        ({"coupling": "none", "beam_size": 0}, 1, "beam_size"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings_, ways, message):
    with pytest.raises(ValueError, match=message):
        SearchConfig(**settings_).make_coupling(ways)


def test_max_length_of_a_source():
    config = SearchConfig(max_length_factor=1.5, max_length_offset=3, max_length_cap=20)
    lengths = config.max_length(np.array([0, 1, 2, 5, 11, 12, 400]))
    assert lengths.tolist() == [0, 4, 6, 10, 19, 20, 20]
    # Something is written, whatever the settings, if there is something to read.
    shorter = SearchConfig(max_length_factor=1.0, max_length_offset=-5)
    assert shorter.max_length(np.array([0, 2, 8])).tolist() == [0, 1, 3]
