"""One trained model of two directions, its directions as two models, and two of one direction."""

import copy
import dataclasses
import itertools
import json

import numpy as np
import pytest

from bidi import evaluate, experiment
from bidi.data.prepared import Prepared
from bidi.data.sources import Example
from bidi.errors import DataError
from bidi.evaluation import agreement, metrics
from bidi.evaluation.agreement import Choice
from bidi.evaluation.config import EvaluationConfig
from bidi.evaluation.found import Found, Hypothesis, Tally
from bidi.evaluation.restore import load_system
from tests.trained_run import STEPS

SOURCES = ["abc", "", "edcba", "bb", "   ", "ea", "abcdeabcde"]


def load(workdir, partner=None, *bindings, checkpoint="best"):
    loaded = experiment.load_run(str(workdir), list(bindings))
    return load_system(str(workdir), loaded, checkpoint, partner and str(partner))


@pytest.fixture
def both(trained, restore_once):
    """The better end's output wins."""
    return load(trained.both)


@pytest.fixture
def agreeing(trained, restore_once):
    """One model whose directions agree."""
    return load(trained.both, None, "Agreement.rescore = True")


@pytest.fixture
def partners(trained, restore_once):
    """The same as two models."""
    return load(trained.l2r, trained.r2l)


def tokens(hypotheses):
    return [hypothesis.tokens for hypothesis in hypotheses]


def test_the_better_end_comes_first(both):
    system = dataclasses.replace(both, searches=(dataclasses.replace(both.search, n_best=4),))
    found = system.find(SOURCES)
    ranked = system.rank(SOURCES, found)
    assert [listed[:1] for listed in ranked] == [(f.winner,) if f.winner else () for f in found]
    assert system.choose(SOURCES, found) == [one.winner for one in found]
    for listed, one in zip(ranked, found, strict=True):
        assert set(tokens(listed)) == set(tokens(one.all))
        assert len(set(tokens(listed))) == len(listed)
    assert max(map(len, ranked)) > 4


def test_unfinished_ones_come_last_or_by_score(both):
    one = both.find(["abc"])[0]
    left, right = (listed[0] for listed in one.n_best.values())
    left = dataclasses.replace(left, finished=True, score=-3.0)
    right = dataclasses.replace(right, finished=True, score=-2.0)
    cut, worse = (
        dataclasses.replace(left, finished=False, score=score, tokens=(*left.tokens, token))
        for score, token in ((-1.0, 6), (-2.5, 7))
    )
    found = Found({"l2r": (cut, worse, left), "r2l": (right,)}, cut)
    assert both.rank(["abc"], [found]) == [(cut, right, left, worse)]
    ranking = dataclasses.replace(both.search, rank_unfinished=True)
    ranking = dataclasses.replace(both, searches=(ranking,))
    assert ranking.rank(["abc"], [found]) == [(cut, right, worse, left)]


def test_a_system_without_a_choice_finds_single_outputs(both, agreeing):
    assert [len(listed) for listed in both.find(["abc"])[0].n_best.values()] == [1, 1]
    assert [len(listed) for listed in agreeing.find(["abc"])[0].n_best.values()] == [4, 4]


def test_rescoring_takes_more_than_winners(agreeing):
    with pytest.raises(ValueError, match=r"winner_only = True, but .* rescoring"):
        agreeing.find(["abc"], winner_only=True)


def by_hand(partners):
    """Each source's pool of both models' outputs, what each says of them: {tokens: sum / 2}."""
    left, right = partners.generators
    config = dataclasses.replace(partners.search, n_best=4)
    lists = [generator.search(SOURCES, config) for generator in (left, right)]
    pools = []
    for source, of_left, of_right in zip(SOURCES, *lists, strict=True):
        listed = [*of_left.n_best["l2r"], *of_right.n_best["r2l"]]
        ended = [h for h in listed if h.finished] or listed
        pool = sorted({h.tokens for h in ended})
        (l2r,), (r2l,) = (g.score([source], [pool]) for g in (left, right))
        pools.append(dict(zip(pool, 0.5 * l2r["l2r"] + 0.5 * r2l["r2l"], strict=True)))
    return pools


def test_two_models_agree_as_pooled_by_hand(partners):
    expected = by_hand(partners)
    for system in (partners, dataclasses.replace(partners, generators=partners.generators[::-1])):
        found = system.find(SOURCES)
        pools = agreement.candidates(SOURCES, found, system.generators, interact=False)
        chosen = dataclasses.replace(system, choice=Choice(0.5, 0.0)).choose(SOURCES, found)
        for pool, hypothesis, sums in zip(pools, chosen, expected, strict=True):
            assert sorted(tokens(pool.hypotheses)) == sorted(sums)
            for one, left, right in zip(pool.hypotheses, pool.first, pool.second, strict=True):
                np.testing.assert_allclose((left + right) / 2, sums[one.tokens], rtol=1e-5)
            if sums:
                assert hypothesis.tokens == max(sums, key=sums.get)
            else:
                assert hypothesis is None


def test_two_models_are_like_their_two_directions_in_one(agreeing, partners):
    """The parameters are the same here."""
    choice = Choice(0.4, 0.6)
    ranked = []
    for system in (agreeing, partners):
        system = dataclasses.replace(system, choice=choice)
        ranked.append(system.rank(SOURCES, system.find(SOURCES)))
    assert list(map(tokens, ranked[0])) == list(map(tokens, ranked[1]))
    for one, other in zip(itertools.chain(*ranked[0]), itertools.chain(*ranked[1]), strict=True):
        assert one.direction == other.direction
        np.testing.assert_allclose(one.score, other.score, rtol=1e-5)


@pytest.fixture
def ensemble(trained, partners):
    """Two models of one direction: the same run at its end and at half of its steps."""
    earlier = load(trained.l2r, checkpoint=str(STEPS // 2)).generators[0]
    return dataclasses.replace(partners, generators=(partners.generators[0], earlier))


def test_two_models_of_one_direction_are_an_ensemble(ensemble):
    choice = Choice(0.4, 0.6)
    system = dataclasses.replace(ensemble, choice=choice)
    found = system.find(SOURCES)
    config = dataclasses.replace(system.search, n_best=4)
    lists = [generator.search(SOURCES, config) for generator in system.generators]
    chosen = system.choose(SOURCES, found)
    written = 0
    for number, source in enumerate(SOURCES):
        assert found[number].n_best.keys() == {"l2r (1)", "l2r (2)"}
        listed = [h for one in lists for h in one[number].n_best["l2r"]]
        pool = sorted({h.tokens for h in listed if h.finished} or {h.tokens for h in listed})
        if not pool:
            assert chosen[number] is None
            continue
        # --> [models, outputs]
        scores = np.array([g.score([source], [pool])[0]["l2r"] for g in system.generators])
        assert abs(scores[0] - scores[1]).max() > 0.01
        lengths = np.array([len(tokens) + 1 for tokens in pool])
        best = np.argmax((0.4 * scores[0] + 0.6 * scores[1]) / lengths**0.6)
        assert chosen[number].tokens == pool[best]
        assert chosen[number].direction in found[number].n_best
        written += len({h.tokens for h in lists[0][number].n_best["l2r"]}) < len(pool)
    assert written  # by the second model alone


def test_a_model_of_both_directions_counts_as_one(both, partners):
    """Its parameters are those of both partners: its score is the mean of theirs."""
    left, right = partners.generators
    systems = (
        dataclasses.replace(partners, generators=(left, both.generators[0])),
        dataclasses.replace(partners, generators=(left, right)),
    )
    found = [system.find(SOURCES) for system in systems]
    assert found[0][0].n_best.keys() == {"l2r (1)", "l2r (2)", "r2l (2)"}
    pools, expected = (
        agreement.candidates(SOURCES, found[1], system.generators, interact=False)
        for system in systems
    )
    for one, other in zip(pools, expected, strict=True):
        np.testing.assert_allclose(one.first, other.first, rtol=1e-4)
        np.testing.assert_allclose(one.second, (other.first + other.second) / 2, rtol=1e-4)


def test_scores_are_taken_as_the_config_says(agreeing, monkeypatch):
    asked = []
    generator = agreeing.generators[0]
    score = generator.score

    def asked_score(sources, candidates, interact):
        asked.append(interact)
        return score(sources, candidates)

    monkeypatch.setattr(generator, "score", asked_score)
    for interact in (False, True):
        config = dataclasses.replace(agreeing.agreement, interact=interact)
        system = dataclasses.replace(agreeing, agreement=config, choice=Choice(0.5, 1.0))
        system.choose(SOURCES, system.find(SOURCES))
    assert asked == [False, True]


def test_agreement_is_not_the_better_end(trained, both, agreeing):
    """Or these tests would show nothing."""
    sources = [
        example.source for example in Prepared.open(str(trained.data)).examples("validation")
    ]
    chosen = dataclasses.replace(agreeing, choice=Choice(0.5, 1.0))
    outputs = [system.choose(sources, system.find(sources)) for system in (both, chosen)]
    assert tokens(outputs[0]) != tokens(outputs[1])


def test_sources_are_counted_once(both, partners):
    for system, models in ((both, 1), (partners, 2)):
        tally = Tally()
        system.find(SOURCES, tally)
        system.find(SOURCES[:2], tally)
        assert (tally.sentences, tally.truncated, tally.batches) == (9, 1, 2 * models)
        # Of nine sources three are empty.
        assert tally.row_steps_run >= tally.row_steps_needed >= 6 * models


def test_the_choice_is_the_best_on_the_validation_split(trained, agreeing):
    prepared = Prepared.open(str(trained.data))
    tuned = agreeing.tuned(prepared)
    examples = prepared.examples("validation")
    sources = [example.source for example in examples]
    references = [example.targets for example in examples]
    found = agreeing.find(sources)
    rates = {}
    for weight in agreeing.agreement.weights:
        for alpha in agreeing.agreement.alphas:
            system = dataclasses.replace(agreeing, choice=Choice(weight, alpha))
            texts = [agreeing.generators[0].text(h) for h in system.choose(sources, found)]
            rates[system.choice] = metrics.word_error_rate(texts, references)
    assert rates[tuned.choice] == min(rates.values()) < max(rates.values())
    assert dataclasses.replace(tuned, choice=None) == agreeing


def test_what_choices_are_made_by(both):
    ids = [(6, 7, 8, 9, 10), (8, 7, 6, 6, 9)]
    chosen = [*(Hypothesis(one, "l2r", -1.0, -1.0, True) for one in ids), None]
    texts = [*(both.generators[0].target_vocabulary.decode(one) for one in ids), ""]
    examples = [
        Example("abcde", ("X", texts[0])),
        Example("cbaad", (f"{texts[1]} X",)),
        Example("", ("X",)),
    ]
    by_bleu = dataclasses.replace(both, evaluation=EvaluationConfig(metric="bleu"))
    assert both.loss(chosen, examples) == pytest.approx(200 / 3)
    bleu = metrics.bleu_chrf(texts, [example.targets for example in examples])["bleu"]
    assert by_bleu.loss(chosen, examples) == -bleu < 0
    by_rouge = dataclasses.replace(both, evaluation=EvaluationConfig(metric="rouge"))
    # The first is right, the second has five words of six, the third none.
    assert by_rouge.loss(chosen, examples) == pytest.approx(100 * (0 + 1 / 11 + 1) / 3)
    by_character = dataclasses.replace(
        both, evaluation=EvaluationConfig(metric="rouge", tokens="characters")
    )
    unspaced = [Example("", (text.replace(" ", "") or "X",)) for text in texts]
    assert by_rouge.loss(chosen, unspaced) == 100
    assert by_character.loss(chosen, unspaced) == pytest.approx(100 / 3)


def test_bleu_of_chinese_is_of_characters(both, monkeypatch):
    """Choices are made by what is reported."""
    monkeypatch.setattr(both.generators[0], "text", lambda hypothesis: "图像识别的方法")
    chosen, examples = [None], [Example("", ("一种图像识别的方法",))]
    losses = [
        dataclasses.replace(both, evaluation=EvaluationConfig(tokens=kind)).loss(chosen, examples)
        for kind in ("words", "characters")
    ]
    assert losses[0] == 0
    assert losses[1] < -50


@pytest.mark.parametrize(
    ("coupling", "beam_size", "expected"), [("none", 6, 8), ("none", 3, 6), ("paired", 4, 4)]
)
def test_agreement_chooses_among_as_many_as_there_are(trained, coupling, beam_size, expected):
    """Four of each direction, but no more than a beam has; whatever `Search.n_best` says."""
    bindings = [
        f"Search.coupling = {coupling!r}",
        f"Search.beam_size = {beam_size}",
        "Search.n_best = 2",
        "Transformer.interaction = 'layers'",
        "Agreement.rescore = True",
    ]
    assert load(trained.both, None, *bindings).candidate_count == expected


def test_search_n_best_is_nothing_to_agreement(trained, partners, tmp_path):
    path = tmp_path / "agreement.json"
    dataclasses.replace(partners, choice=Choice(0.3, 1.5)).save_choice(path, "digest")
    other = load(trained.l2r, trained.r2l, "Search.n_best = 3")
    assert other.saved_choice(path) == Choice(0.3, 1.5)
    assert other.search.n_best == 4


def test_a_saved_choice_is_that_systems_alone(trained, agreeing, partners, tmp_path):
    path = tmp_path / "agreement.json"
    assert agreeing.saved_choice(path) is None
    agreeing.save_choice(path, "digest")
    assert not path.exists()

    tuned = dataclasses.replace(partners, choice=Choice(0.3, 1.5))
    tuned.save_choice(path, "digest")
    assert list(tmp_path.iterdir()) == [path]
    assert partners.saved_choice(path) == tuned.choice
    again = load(trained.l2r, trained.r2l, "Evaluation.samples = 7")
    assert again.saved_choice(path) == tuned.choice

    reading_less = copy.copy(partners.generators[0])
    reading_less._max_source_length = 2
    others = [
        agreeing,
        load(trained.r2l, trained.l2r),
        load(trained.l2r, trained.r2l, "Search.alpha = 0.5"),
        load(trained.l2r, trained.r2l, "Agreement.alphas = (0.0, 1.5)"),
        load(trained.l2r, trained.r2l, "Agreement.n_best = 3"),
        load(trained.l2r, trained.r2l, "Evaluation.metric = 'bleu'"),
        load(trained.l2r, trained.r2l, "Evaluation.tokens = 'characters'"),
        dataclasses.replace(partners, steps=(60, 120)),
        dataclasses.replace(partners, workdirs=(partners.workdirs[0], "another")),
        # Other models in the same place, or told to read less.
        dataclasses.replace(partners, generators=partners.generators[::-1]),
        dataclasses.replace(partners, generators=(reading_less, partners.generators[1])),
    ]
    for other in others:
        assert other.saved_choice(path) is None
        other = dataclasses.replace(other, choice=Choice(0.7, 0.0))
        other.save_choice(path, "digest")
        assert other.saved_choice(path) == other.choice
        assert partners.saved_choice(path) == tuned.choice
    dataclasses.replace(partners, choice=Choice(0.4, 0.0)).save_choice(path, "another")
    assert partners.saved_choice(path) == Choice(0.4, 0.0)
    # Made by another validation split.
    assert partners.saved_choice(path, "digest") is None
    assert partners.saved_choice(path, "another") == Choice(0.4, 0.0)
    assert len(json.loads(path.read_text())) == 1 + len(others)


def test_data_without_a_validation_split_are_scored_by_the_choice_there_is(
    trained, partners, tmp_path
):
    path, prepared = tmp_path / "agreement.json", Prepared.open(str(trained.data))
    dataclasses.replace(partners, choice=Choice(0.3, 1.5)).save_choice(path, "another")
    splits = {"test": prepared.manifest["splits"]["test"]}
    alone = dataclasses.replace(prepared, manifest=prepared.manifest | {"splits": splits})
    assert evaluate._with_choice(partners, path, alone).choice == Choice(0.3, 1.5)
    with pytest.raises(DataError, match="has no split 'validation'"):
        evaluate._with_choice(partners, tmp_path / "none.json", alone)


def test_a_choice_goes_with_the_workdirs(trained, partners, tmp_path, monkeypatch):
    path = tmp_path / "agreement.json"
    dataclasses.replace(partners, choice=Choice(0.3, 1.5)).save_choice(path, "digest")
    assert str(tmp_path.parent) not in path.read_text()
    monkeypatch.chdir(trained.l2r.parent)
    moved = dataclasses.replace(partners, workdirs=("l2r", "r2l"))
    assert moved.saved_choice(path) == Choice(0.3, 1.5)
