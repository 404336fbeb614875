"""What a run tells of updates whose loss is no number."""

import itertools
import json
import logging
import time

import numpy as np
import pytest

from bidi.training.loss import LossSums
from bidi.training.report import NotFiniteError, TrainMeter, means, training_summary
from bidi.training.step import Suspects


def metrics(loss=2.0, norm=1.0):
    one = np.float32(1)
    sums = LossSums(np.float32(loss), np.ones(1), np.ones(1), np.ones(1))
    return {
        "sums": sums,
        "gradient_norm": one * norm,
        "suspects": Suspects(np.int32(1), np.ones((1, 1, 2), np.int32)),
    }


def meter(**options):
    return TrainMeter(["l2r"], lambda suspects: f"{suspects.rows} row", **options)


def add(meter, *losses):
    for step, loss in enumerate(losses, 1):
        meter.add(step, metrics(loss))
    meter.drain()


def test_what_was_skipped_is_counted_and_is_in_no_mean(caplog):
    some = meter(skip=2)
    add(some, 2.0, np.nan, np.inf, 4.0)
    row = some.row()
    assert row["train/loss"] == 3.0
    assert row["train/skipped"] == 2
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert "Skipped update 2 (from step 1 to 2): loss nan, gradient norm 1.0; 1 row" in caplog.text
    add(some, 1.0)
    assert "train/skipped" not in some.row()
    add(some, np.nan)
    row = some.row()
    assert row["train/skipped"] == 1
    assert "train/loss" not in row


def test_means_are_of_the_labels_of_each_direction():
    sums = LossSums(np.float32(12), np.array([4, 9]), np.array([2, 3]), np.array([2, 6]))
    assert means(sums, ["l2r", "r2l"], "validation") == {
        "validation/loss": 1.5,
        "validation/nll_l2r": 2.0,
        "validation/nll_r2l": 1.5,
        "validation/accuracy_l2r": 1.0,
        "validation/accuracy_r2l": 0.5,
    }


def test_the_gradient_norm_is_the_mean_of_the_updates():
    some = meter()
    for step, norm in ((1, 1.0), (2, 3.0)):
        some.add(step, metrics(norm=norm))
    some.drain()
    assert some.row()["train/gradient_norm"] == 2


def test_a_skipped_update_takes_time(monkeypatch):
    now = itertools.count(0.0, 1.0)
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    some = meter(skip=2)
    add(some, 2.0, np.nan, np.inf, 4.0)
    row = some.row()
    assert row["train/milliseconds_per_update"] == 250
    assert row["train/tokens_per_second"] == 2
    # What is skipped only takes its time from no row behind it.
    add(some, np.nan)
    assert some.row()["train/milliseconds_per_update"] == 1000
    add(some, 1.0)
    assert some.row()["train/milliseconds_per_update"] == 1000


def test_a_summary_is_of_the_rows_that_are_whole(tmp_path):
    speed = "train/milliseconds_per_update"
    nothing = {"updates": 30, "seconds": None, "median_milliseconds_per_update": None}
    assert training_summary(tmp_path, 30) == nothing
    rows = [
        {"step": 10, speed: 2.0},
        {"step": 20, "validation/loss": 1.0},
        {"step": 30, speed: 4.0},
    ]
    text = "".join(f"{json.dumps(row)}\n" for row in [*rows, {"step": 40, speed: 9.0}])
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 50, "train/mi')
    summary = training_summary(tmp_path, 30)
    assert summary == {"updates": 30, "seconds": 0.1, "median_milliseconds_per_update": 3.0}


def test_a_gradient_without_a_number_is_enough():
    some = meter()
    some.add(1, metrics(norm=np.inf))
    with pytest.raises(NotFiniteError, match=r"update 1 .* gradient norm inf; 1 row"):
        some.drain()


def test_too_many_in_a_row_stop_the_run():
    with pytest.raises(NotFiniteError, match=r"update 3 .* 2 updates in a row"):
        add(meter(skip=2), np.nan, np.nan, np.nan)
    add(meter(skip=2), np.nan, np.nan, 1.0, np.nan, np.nan)
    # Those before a stop of the run count.
    with pytest.raises(NotFiniteError, match="update 1"):
        add(meter(skip=2, skipped_in_a_row=2), np.nan)
