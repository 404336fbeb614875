"""Which rows there are and what is made of them; they run in tests/test_benchmark.py."""

import dataclasses

import pytest

from bidi import experiment
from bidi.benchmarking import searches
from bidi.benchmarking.rounds import Spread
from bidi.benchmarking.searches import Row, Taken
from bidi.evaluation.found import Tally
from bidi.search.config import SearchConfig
from tests.trained_run import HALVES


def load(trained, *bindings):
    return experiment.load([trained.gin_file], bindings)


def kinds(rows):
    return [(row.model, row.search.coupling, row.search.beam_size) for row in rows]


def test_rows_of_streams_that_do_not_read_each_other(trained):
    loaded = load(trained, "Search.alpha = 0.3")
    rows = searches.rows(loaded, [1, 4], base=True)
    assert kinds(rows) == [
        ("L2R", "none", 1),
        ("L2R", "none", 4),
        ("model", "none", 1),
        ("model", "none", 4),
    ]
    for row in rows:
        same = dataclasses.replace(row.search, coupling="none", beam_size=4)
        assert same == loaded.search
    assert kinds(searches.rows(loaded, [1, 4], base=False)) == kinds(rows)[2:]


def test_rows_of_streams_that_read_each_other(trained):
    rows = searches.rows(load(trained, "Transformer.interaction = 'top'"), [1, 4], base=True)
    assert kinds(rows) == [
        ("L2R", "none", 1),
        ("L2R", "none", 3),
        ("L2R", "none", 4),
        ("L2R", "none", 6),
        ("model", "none", 1),
        ("model", "none", 4),
        ("model", "paired", 4),
        ("model", "product", 1),
        ("model", "product", 4),
        ("model", "product", 3),
        ("model", "paired", 6),
    ]
    for row in rows:
        row.search.make_coupling(1 if row.model == "L2R" else 2)  # none is refused
    again = searches.rows(load(trained, "Transformer.interaction = 'top'"), [3, 6], base=False)
    assert len(kinds(again)) == len(set(kinds(again))) == 5


def test_halves_are_searched_by_joint_alone(trained):
    rows = searches.rows(load(trained, *HALVES), [1, 4], base=True)
    assert kinds(rows) == [
        ("L2R", "none", 1),
        ("L2R", "none", 4),
        ("model", "joint", 1),
        ("model", "joint", 4),
    ]


def taken(*seconds, run=100, needed=80):
    tally = Tally(sentences=10, row_steps_run=run, row_steps_needed=needed)
    return Taken(list(seconds), 10, 40, tally, 1.5, {"arguments": 1, "temporary": 2})


def test_a_report_by_hand():
    report = taken(2.0, 4.0).report(base=taken(1.0, 3.0))
    assert report["sentences_per_second"] == Spread(3.75, 2.5, 5)
    assert report["milliseconds_per_sentence"] == Spread(300, 200, 400)
    assert report["tokens_per_second"] == Spread(15, 10, 20)
    assert report["ratio_to_l2r"] == Spread(0.625, 0.5, 0.75)
    assert (report["row_steps_run"], report["row_steps_needed"]) == (100, 80)
    assert report["compile_seconds"] == 1.5
    assert taken(2.0).report(base=None)["ratio_to_l2r"] is None


def test_the_best_size_of_each_row_and_their_ratio():
    base = Row("L2R", SearchConfig(coupling="none"))
    row = Row("model", SearchConfig(coupling="paired"))
    by_size = {
        None: {base: taken(0.1), row: taken(0.1)},
        512: {base: taken(1.0), row: taken(4.0)},
        1024: {base: taken(2.0), row: taken(3.0)},
    }
    report = searches.row_report(row, by_size)
    assert report["name"] == "model, paired, beam 4"
    assert report["best"] == "1024"
    assert report["ratio_to_l2r_at_best"] == pytest.approx(1 / 3)
    assert list(report["batches"]) == ["one", "512", "1024"]
    assert report["batches"]["512"]["ratio_to_l2r"].median == pytest.approx(1 / 4)
    assert searches.row_report(base, by_size)["best"] == "512"
    alone = {size: {row: at[row]} for size, at in by_size.items()}
    assert searches.row_report(row, alone)["ratio_to_l2r_at_best"] is None
