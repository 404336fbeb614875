import io
import itertools
import math

import pytest
import rich.console

from bidi.data.sources import Example
from bidi.evaluation import metrics, report, rouge
from bidi.evaluation.config import EvaluationConfig
from bidi.evaluation.found import Found, Hypothesis


class Spelling:
    """Stands for a generator: token n is the n-th letter."""

    def text(self, hypothesis):
        return "" if hypothesis is None else " ".join(chr(64 + n) for n in hypothesis.tokens)


def hypothesis(text, direction, finished=True):
    tokens = tuple(ord(letter) - 64 for letter in text)
    return Hypothesis(tokens, direction, -1.0, -1.0, finished)


def found(left, right, won):
    lists = {"l2r": (hypothesis(left, "l2r"),), "r2l": (hypothesis(right, "r2l"),)}
    return Found(lists, lists[won][0])


EXAMPLES = [
    Example("ab", ("A B", "A C")),
    Example("[/b] :cat:", ("A B C",)),
    Example("", ("A",)),
    Example("d", ("D",)),
]
FOUND = [
    found("AC", "AB", "l2r"),
    found("ABD", "BBC", "r2l"),
    Found({"l2r": (), "r2l": ()}, None),
    found("D", "E", "l2r"),
]
CHOSEN = [one.winner for one in FOUND]


def test_scores_are_all_metrics():
    hypotheses, references = ["A B", "C"], [["A B"], ["C D", "E"]]
    scores = report.scores(hypotheses, references)
    assert scores["wer"] == scores["exact_match"] == 50
    assert scores["per"] == metrics.token_error_rate(hypotheses, references)
    bleu = metrics.bleu_chrf(hypotheses, references)
    assert {key: scores[key] for key in bleu} == bleu
    assert scores["length_ratio"] == metrics.length_ratio(hypotheses, references)
    by_position = metrics.positional_accuracy(
        [["A", "B"], ["C"]], [[["A", "B"]], [["C", "D"], ["E"]]]
    )
    assert scores["positional_accuracy"].keys() == by_position.keys()
    for key, value in by_position.items():
        assert scores["positional_accuracy"][key] == pytest.approx(value, nan_ok=True)
    assert scores.keys() == {
        "wer", "per", "exact_match", *bleu, "length_ratio", "positional_accuracy"
    }  # fmt: skip


def test_what_was_chosen_and_each_end_are_scored():
    results = report.results(Spelling(), EXAMPLES, FOUND, CHOSEN, EvaluationConfig())
    assert results["metrics"]["wer"] == 50
    assert results["directions"]["l2r"]["wer"] == 50
    assert results["directions"]["r2l"]["wer"] == 75
    assert results["directions"].keys() == {"l2r", "r2l"}


def test_characters_are_counted_on_request():
    hypotheses, references = ["甲 乙丙"], [["甲乙 丁"]]
    by_words = report.scores(hypotheses, references)
    scores = report.scores(hypotheses, references, "characters")
    assert (by_words["per"], by_words["length_ratio"]) == (100, 1)
    assert scores["per"] == pytest.approx(100 / 3)
    assert (scores["wer"], scores["length_ratio"]) == (100, 1)
    assert scores["positional_accuracy"]["first"] == [100, 100, 0]
    assert "tok:zh|" in scores["bleu_signature"]
    assert report.scores(["甲 乙"], [["甲乙"]], "characters")["exact_match"] == 100


def test_titles_are_scored_besides_by_rouge():
    config = EvaluationConfig(metric="rouge", tokens="characters")
    with_rouge = report.results(Spelling(), EXAMPLES, FOUND, CHOSEN, config)
    without = report.results(
        Spelling(), EXAMPLES, FOUND, CHOSEN, EvaluationConfig(tokens="characters")
    )
    texts = ["A C", "B B C", "", "D"]
    more = {
        **rouge.rouge(texts, [one.targets for one in EXAMPLES], "characters"),
        # A of "ab"; B and B of "[/b] :cat:", and its C; D of "d".
        "copied": pytest.approx(100 * 5 / 6),
        # AC; BB and BC.
        "novelty": 100,
    }
    assert with_rouge["metrics"] == without["metrics"] | more
    assert with_rouge["directions"]["r2l"]["rouge1"] == pytest.approx(100 * (1 + 2 / 3) / 4)


def test_shares_are_of_the_outputs_and_sum_to_100():
    results = report.results(Spelling(), EXAMPLES, FOUND, CHOSEN, EvaluationConfig())
    assert results["won"] == {"l2r": pytest.approx(200 / 3), "r2l": pytest.approx(100 / 3)}
    assert math.fsum(results["won"].values()) == pytest.approx(100)
    assert results["unfinished"] == 0
    chosen = [*CHOSEN[:3], hypothesis("D", "r2l", finished=False)]
    results = report.results(Spelling(), EXAMPLES, FOUND, chosen, EvaluationConfig())
    assert results["won"] == {"l2r": pytest.approx(100 / 3), "r2l": pytest.approx(200 / 3)}
    assert results["unfinished"] == pytest.approx(100 / 3)


def test_empty_sources_alone():
    results = report.results(Spelling(), EXAMPLES[2:3], FOUND[2:3], [None], EvaluationConfig())
    assert results["won"] == {"l2r": 0, "r2l": 0}
    assert results["metrics"]["wer"] == 100


def test_one_direction():
    lists = [Found({"r2l": one.n_best["r2l"]}, None) for one in FOUND]
    chosen = [one.n_best["r2l"][0] if one.n_best["r2l"] else None for one in lists]
    results = report.results(Spelling(), EXAMPLES, lists, chosen, EvaluationConfig())
    assert results["won"] == {"r2l": 100}
    scores = (results["metrics"], results["directions"]["r2l"])
    assert [{k: v for k, v in one.items() if k != "positional_accuracy"} for one in scores] == [
        {k: v for k, v in scores[0].items() if k != "positional_accuracy"}
    ] * 2


def test_samples_show_both_ends():
    samples = report.samples(Spelling(), EXAMPLES, FOUND, CHOSEN)
    assert samples[1] == {
        "source": "[/b] :cat:",
        "references": ["A B C"],
        "l2r": "A B D",
        "r2l": "B B C",
        "chosen": "B B C",
        "won": "r2l",
    }
    assert samples[2] == {
        "source": "", "references": ["A"], "l2r": "", "r2l": "", "chosen": "", "won": None
    }  # fmt: skip


def printed(lists, chosen, agreement, **evaluation):
    console = rich.console.Console(file=io.StringIO(), width=120)
    results = {
        "split": "test",
        "sentences": len(EXAMPLES),
        "agreement": agreement,
        "samples": report.samples(Spelling(), EXAMPLES, lists, chosen),
        **report.results(Spelling(), EXAMPLES, lists, chosen, EvaluationConfig(**evaluation)),
    }
    report.print_results(results, EvaluationConfig(**evaluation), console)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def rows(lines):
    """The cells of the table by the first of their row."""
    (rule,) = (number for number, line in enumerate(lines) if line.startswith(" ───"))
    inside = itertools.takewhile(bool, (line.split() for line in lines[rule + 1 :]))
    return {cells[0]: cells[1:] for cells in inside}


def test_every_number_stands_under_its_heading(monkeypatch):
    row = {"wer": 1, "per": 2, "bleu": 3, "chrf": 4, "length_ratio": 7}
    row["positional_accuracy"] = {"first_4": 5, "last_4": 6}
    monkeypatch.setattr(report, "scores", lambda *_: row)
    cells = rows(printed(FOUND, CHOSEN, None))["chosen"]
    assert cells == ["1.00", "2.00", "3.00", "4.00", "5.00", "6.00", "7.000"]


def test_the_table_names_systems_and_shares():
    lines = printed(FOUND, CHOSEN, None)
    assert lines[0].strip() == "test: 4 sources"
    table = rows(lines)
    assert table.keys() == {"chosen", "l2r", "r2l"}
    assert [cells[0] for cells in table.values()] == ["50.00", "50.00", "75.00"]
    assert table["l2r"][-2:] == ["66.7", "%"]
    only = [Found({"l2r": one.n_best["l2r"]}, None) for one in FOUND]
    chosen = [one.n_best["l2r"][0] if one.n_best["l2r"] else None for one in only]
    assert rows(printed(only, chosen, None)).keys() == {"chosen"}


def test_the_table_of_titles():
    (heading,) = (line for line in printed(FOUND, CHOSEN, None, metric="wer") if "BLEU" in line)
    assert heading.split()[:4] == ["WER", "PER", "BLEU", "chrF"]
    (heading,) = (line for line in printed(FOUND, CHOSEN, None) if "BLEU" in line)
    assert heading.split()[:4] == ["inexact", "WER", "BLEU", "chrF"]
    lines = printed(FOUND, CHOSEN, None, metric="rouge")
    (heading,) = (line for line in lines if "BLEU" in line)
    headings = heading.split()
    assert headings[:6] == ["R-1", "R-2", "R-L", "BLEU", "copied", "novel"]
    # A C of A B and A C; B B C of A B C; none of A; D of D.
    assert rows(lines)["chosen"][0] == f"{100 * (1 + 2 / 3 + 0 + 1) / 4:.2f}"
    # Of seven words B, which is in "[/b] :cat:", and D; and no bigram.
    assert rows(lines)["right"] == [f"{100 * 2 / 7:.2f}", "100.00"]
    assert max(map(len, lines[: lines.index("")])) <= 80


def test_samples_are_printed_as_they_are():
    lines = printed(FOUND, CHOSEN, None)
    at = lines.index("[/b] :cat:")
    assert lines[at + 1 : at + 4] == ["    l2r  A B D", "  * r2l  B B C", "    right: A B C"]
    agreed = printed(FOUND, CHOSEN, {"weight": 0.5, "alpha": 1.0})
    assert "    chosen by both: B B C" in agreed
    assert not any("chosen by both" in line for line in lines)
