"""Contract 7 in real processes: stopped anywhere, a run goes on as if it had not been."""

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import signal
import sys
import threading

import pytest
from absl.testing import flagsaver

from bidi import train as train_verb
from bidi import verb
from bidi.data.prepare import prepare
from bidi.errors import ConfigError, DataError, PathError, UserError
from bidi.provenance import CompileMeter
from bidi.training import loop, stop
from bidi.training.workdir import CannotResumeError
from tests.stoppable_run import (
    SAVED_EVERY,
    STEPS,
    Process,
    assert_same_run,
    files,
    load,
    rows,
    saved,
    train,
)
from tests.training.test_checkpoints import flip
from tests.training.tiny import assert_trees_equal


def test_the_undisturbed_run_learns_and_leaves_what_it_should(undisturbed):
    losses = [row["train/loss"] for row in rows(undisturbed) if "train/loss" in row]
    assert losses[-1] < losses[0]
    validated = [row["step"] for row in rows(undisturbed) if "validation/loss" in row]
    assert validated == list(range(30, STEPS + 1, 30))
    assert len(losses) == STEPS / 5
    assert {path.name for path in undisturbed.iterdir()} == {
        "checkpoints", "config.gin", "data.json", "lock", "metrics.jsonl", "provenance.json",
        "source.model", "target.model", "tensorboard",
    }  # fmt: skip


def test_killed_three_times_and_the_newest_checkpoint_damaged(tiny, undisturbed, tmp_path):
    # Before there is any checkpoint: it starts anew.
    process = Process(tiny, tmp_path / "run")
    process.until(lambda: len(process.rows()) > 2).kill()
    assert not any(name.isdigit() for name in process.checkpoints())

    # Within an epoch, with rows of updates that no checkpoint holds, the last row cut off.
    process = Process(tiny, process.workdir)
    process.until(process.rows_behind_the_checkpoint).kill()
    assert "New run" in process.output
    step = int(process.checkpoints()[-1])
    assert 0 < step < process.rows()[-1]["step"] < STEPS
    with (process.workdir / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 299, "train/lo')

    # While a checkpoint is being written.
    process = Process(tiny, process.workdir)
    process.until(process.is_saving).kill()
    assert f"from step {step}" in process.output
    *_, before, newest, begun = process.checkpoints()
    assert newest.isdigit()
    assert "tmp" in begun

    # What it would go on from is damaged: it goes on from the one before.
    for path in (process.workdir / "checkpoints" / newest / "params").rglob("d/*"):
        flip(path)
    process = Process(tiny, process.workdir)
    assert process.finish() == 0, process.output
    assert f"Checkpoint of step {newest}" in process.output
    assert f"from step {before}" in process.output
    assert_same_run(process.workdir, undisturbed)


def test_asked_to_stop_it_saves_and_goes_on_later(tiny, undisturbed, tmp_path):
    # First while it compiles: there is nothing to be saved, or the first update.
    process = Process(tiny, tmp_path / "run")
    process.until(lambda: "New run" in process.output).send(signal.SIGTERM)
    process.send(signal.SIGCONT)
    assert process.finish() == 0, process.output
    assert "the same command goes on" in process.output
    stops = {process.newest_checkpoint()}
    assert stops <= {0, 1}
    # Then in the middle.
    process = Process(tiny, process.workdir)
    process.until(lambda: process.rows() and process.rows()[-1]["step"] > SAVED_EVERY)
    process.send(signal.SIGTERM)
    process.send(signal.SIGCONT)
    assert process.finish() == 0, process.output
    assert "SIGTERM: saving, then stopping" in process.output
    step = process.newest_checkpoint()
    stops.add(step)
    assert SAVED_EVERY < step < STEPS
    assert f"Stopped at step {step} of {STEPS}" in process.output
    # No update is missing in the rows, none is there twice.
    assert process.rows()[-1]["step"] == step
    process = Process(tiny, process.workdir)
    assert process.finish() == 0, process.output
    assert f"from step {step}" in process.output
    assert_trees_equal(saved(process.workdir), saved(undisturbed))
    ours, theirs = (
        {(row["step"], next(iter(set(row) - {"step"})).split("/")[0]): row for row in rows(workdir)}
        for workdir in (process.workdir, undisturbed)
    )
    assert len(ours) == len(process.rows())
    # But for the rows that the stops divided in two, they are the same.
    divided = {key for key in theirs if ours.get(key) != theirs[key]}
    assert divided <= {(step - step % 5 + 5, "train") for step in stops if step % 5}
    assert ours.keys() - theirs.keys() <= {(step, "train") for step in stops}


def test_a_loss_that_is_no_number_stops_the_run(tiny, finished):
    # A run that was fine so far and breaks: as if it had had this learning rate from the start.
    saved_config = finished / "config.gin"
    text = saved_config.read_text()
    assert text.count("learning_rate = 0.001") == 1
    saved_config.write_text(text.replace("learning_rate = 0.001", "learning_rate = 1e+30"))
    before = files(finished / "checkpoints")
    process = Process(
        tiny, finished, "--gin.Optimizer.learning_rate=1e30", f"--gin.Training.steps={STEPS + 100}",
        "--gin.Training.checkpoint_every=1", "--gin.Training.evaluate_every=1",
    )  # fmt: skip
    assert process.finish() == 1
    assert f"last good checkpoint is step {STEPS}" in process.output
    assert f"step {STEPS + 1}" in process.output
    assert "Traceback" not in process.output
    assert files(finished / "checkpoints") == before
    assert "NaN" not in (finished / "metrics.jsonl").read_text()


def test_errors_of_the_user_have_no_traceback(tiny, tmp_path):
    process = Process(tiny, tmp_path / "run", "--gin.Data.directory=/none")
    assert process.finish() == 1
    assert "/none holds no prepared data: run python -m" in process.output
    assert process.output.splitlines()[-1].startswith("bidi.train: ")
    assert "Traceback" not in process.output
    assert not process.workdir.exists()


# In this process from here on: nothing is compiled where nothing is left to do.


@pytest.mark.parametrize(
    ("gin_file", "workdir", "message"),
    [("tiny.gin", "", "--workdir is missing"), ("none.gin", "run", "none.gin")],
)
def test_errors_of_the_user_are_said_in_a_line(
    tiny, tmp_path, monkeypatch, gin_file, workdir, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(verb, "_log_to_stderr", lambda: None)
    arguments = [f"--gin_file={tiny / gin_file}", f"--workdir={workdir}"]
    monkeypatch.setattr(sys, "argv", ["bidi.train", *arguments])
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as caught:
        verb.run("bidi.train", train_verb.main, processes=True)
    (line,) = caught.value.code.splitlines()
    assert line.startswith("bidi.train: ")
    assert message in line
    assert not list(tmp_path.iterdir())


def test_nothing_but_damaged_checkpoints(tiny, finished, caplog):
    for path in (finished / "checkpoints").glob("*/progress/metadata"):
        path.write_bytes(b"")
    before = files(finished)
    with pytest.raises(UserError, match=r"^None of the checkpoints in"):
        train(tiny, finished)
    assert "cannot be read" in caplog.text
    assert "Traceback" not in caplog.text
    assert files(finished) == before


def test_a_finished_run_does_nothing(tiny, finished, caplog):
    before = files(finished)
    with caplog.at_level("INFO", "bidi"):
        assert train(tiny, finished) == loop.Outcome(STEPS, finished=True)
    assert f"All {STEPS} steps are made already" in caplog.text
    assert files(finished) == before


def test_the_saved_config_replays(tiny, finished):
    before = files(finished)
    binding, file = "Training.accumulation = 1", finished / "config.gin"
    train(tiny, finished, binding, file=file)
    assert load(tiny, binding, file=file).settings.text == file.read_text()
    assert files(finished) == before


@pytest.mark.parametrize(
    ("binding", "difference"),
    [
        ("Transformer.dropout = 0.2", "Transformer.dropout = 0.2 (it has 0.1)"),
        ("Optimizer.b1 = 0.8", "Optimizer.b1 = 0.8 (it has 0.9)"),
        ("Training.seed = 3", "Training.seed = 3 (it has 0)"),
        ("Batches.rows = 16", "Batches.rows = 16 (it has 8)"),
        ("Streams.markers = 'tags'", "Streams.markers = 'tags' (it has 'swap')"),
    ],
)
def test_another_experiment_is_refused_by_name(tiny, finished, binding, difference):
    before = files(finished)
    with pytest.raises(CannotResumeError) as caught:
        train(tiny, finished, binding, "Training.log_every = 7")
    assert f"  {difference}\n" in str(caught.value)
    assert str(finished) in str(caught.value)
    assert "log_every" not in str(caught.value)  # it is no reason
    assert files(finished) == before


def test_what_changes_no_update_may_change(tiny, finished, caplog):
    shutil.copytree(tiny / "data", finished.with_name("moved"))
    bindings = [
        "Training.steps = 80",
        "Training.log_every = 7",
        "Training.evaluate_every = 10",
        "Training.checkpoint_every = 20",
        "Training.keep_checkpoints = 1",
        "Training.prng_impl = 'rbg'",
        "Search.alpha = 0.0",
        f"Data.directory = '{finished.with_name('moved')}'",
    ]
    with caplog.at_level("INFO", "bidi"):
        assert train(tiny, finished, *bindings).finished
    for binding in bindings:
        assert f"Changed: {binding} (was " in caplog.text
    assert "log_every = 7" in (finished / "config.gin").read_text()


def test_other_data_are_refused(tiny, finished):
    other = finished.with_name("other")
    shutil.copytree(tiny / "data", other)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["fingerprint"]["source"]["files"]["train"][0] = "0" * 64
    (other / "manifest.json").write_text(json.dumps(manifest))
    before = files(finished)
    with pytest.raises(CannotResumeError, match=f"other data than {other}"):
        train(tiny, finished, f"Data.directory = '{other}'")
    assert files(finished) == before


def test_a_place_that_orbax_cannot_read_is_refused(tiny, tmp_path):
    with pytest.raises(PathError, match=r"run\[1\]: in a directory with a bracket in its name"):
        train(tiny, tmp_path / "run[1]")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("bindings", "error", "message"),
    [
        (["Batches.rows = 12"], ConfigError, "Batches.rows = 12"),
        (["Batches.source_length = 5"], DataError, "Batches.source_length = 5"),
        (["Training.accumulation = 3"], ConfigError, "Training.accumulation = 3"),
        (["Training.initialize_from = '/none'"], FileNotFoundError, "initialize_from = '/none'"),
        (
            ["Optimizer.schedule = 'cosine'", f"Optimizer.decay_steps = {STEPS - 1}"],
            ConfigError,
            f"from Optimizer.decay_steps = {STEPS - 1} on the learning rate is 0",
        ),
    ],
)
def test_what_cannot_be_run_claims_no_workdir(tiny, tmp_path, bindings, error, message):
    with pytest.raises(error, match=message):
        train(tiny, tmp_path / "run", *bindings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("broken", ["none", "longer"])
def test_bad_validation_data_are_said_before_training(tiny, tmp_path, broken):
    changed = load(tiny).data
    texts = {side: dict(getattr(changed.source, side)) for side in ("source", "target")}
    if broken == "none":
        for side in texts.values():
            del side["validation"]
    else:
        (tmp_path / "long").write_text("a" * 30 + "\n")
        texts["source"]["validation"] = texts["target"]["validation"] = str(tmp_path / "long")
    source = dataclasses.replace(changed.source, **texts)
    prepare(dataclasses.replace(changed, directory=str(tmp_path / "data"), source=source))
    with pytest.raises(DataError, match="validation" if broken == "none" else "needs 31"):
        train(tiny, tmp_path / "run", f"Data.directory = '{tmp_path}/data'")
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_needs_a_loss(tiny):
    with pytest.raises(ConfigError, match=r"checkpoint_every = 60 is no multiple .* = 25"):
        load(tiny, "Training.evaluate_every = 25")


def test_signals_are_handled_while_training_only():
    former = signal.getsignal(signal.SIGTERM)
    with stop.StopOnSignal() as asked:
        assert not asked.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.is_set()
        # A second Ctrl-C does not wait for the save.
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("not interrupted")
    assert signal.getsignal(signal.SIGTERM) == former


def test_a_signal_in_the_middle_of_a_line_of_the_log_is_heeded():
    lines = []

    class Handler(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())
            assert len(lines) != 2, "a line in the middle of another"
            if len(lines) == 1:
                os.kill(os.getpid(), signal.SIGTERM)
                lines.append("written")

    handler = Handler()
    stop.log.addHandler(handler)
    stop.log.setLevel(logging.INFO)
    try:
        with stop.StopOnSignal() as asked:
            stop.log.info("a line")
            assert asked.is_set()
            assert asked.is_set()
    finally:
        stop.log.removeHandler(handler)
        stop.log.setLevel(logging.NOTSET)
    assert lines == ["a line", "written", "SIGTERM: saving, then stopping"]


def test_a_run_lets_go_of_its_threads_and_its_resume_compiles_once(tiny, tmp_path):
    """And of its files: warnings about them are errors here."""
    before = set(threading.enumerate())
    numbers = ["Training.evaluate_every = 2", "Training.checkpoint_every = 4"]
    train(tiny, tmp_path / "run", "Training.steps = 4", *numbers)
    meter = CompileMeter()
    train(tiny, tmp_path / "run", "Training.steps = 8", *numbers)
    assert meter.count == 2  # a step to train and one to evaluate
    started = set(threading.enumerate()) - before
    for thread in started:
        thread.join(60)  # told to end, it may need a moment
    assert not [thread.name for thread in started if thread.is_alive()]
