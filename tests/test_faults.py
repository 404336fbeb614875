"""What goes wrong, done to real runs: killed, no room, damaged data, no numbers, two at once."""

import contextlib
import os
import random
import shutil
import subprocess

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from bidi.data import pipeline
from bidi.data.prepare import prepare
from bidi.data.prepared import Prepared
from bidi.errors import DataError, UserError
from bidi.training import lock, loop
from bidi.training.checkpoints import Checkpoints, FailedSaveError
from bidi.training.report import NotFiniteError
from bidi.training.step import Trainer
from tests.stoppable_run import (
    STEPS,
    Process,
    assert_same_run,
    files,
    load,
    rows,
    saved,
    train,
)
from tests.training.test_checkpoints import make_data, make_state
from tests.training.tiny import assert_trees_equal


@pytest.mark.slow
def test_killed_twenty_times_at_random(tiny, undisturbed, tmp_path):
    """In test_train.py it is three times, at chosen moments."""
    draw, kills = random.Random(), []
    while len(kills) < 20:
        process = Process(tiny, tmp_path / "run")
        done = process.newest_checkpoint()
        # Spread over the run, and some while it starts.
        if draw.random() < 0.7:
            process.until_step(max(int((len(kills) + draw.random()) * (STEPS - 30) / 20), done + 1))
        process.go_on_for(draw.random() * 0.1)
        process.kill()
        kills.append((done, process.newest_checkpoint(), len(process.rows())))
    print(kills)
    assert len({done for done, *_ in kills}) > 3  # it went on from several checkpoints
    process = Process(tiny, tmp_path / "run")
    assert process.finish() == 0, process.output
    assert_same_run(process.workdir, undisturbed)


@contextlib.contextmanager
def small_disk(directory, size):
    """A file system in memory; skips the test where none may be mounted."""
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no small file system can be mounted here: that takes root")
    try:
        yield directory
    finally:
        # A killed process may hold it still.
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def fill(directory, leaving=0):
    """Leaves so many bytes; returns the file that takes the others."""
    path = directory / "filled"
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(b"0" * 4096):
            pass
    os.truncate(path, path.stat().st_size - leaving)
    return path


def test_a_full_disk_costs_checkpoints_but_no_run(tiny, undisturbed, tmp_path):
    with small_disk(tmp_path / "disk", "40m") as disk:
        (disk / "run").mkdir()
        (tmp_path / "run").symlink_to(disk / "run")  # what the processes print goes elsewhere
        process = Process(tiny, tmp_path / "run")
        process.until(process.rows_behind_the_checkpoint)
        good = process.checkpoints()[-1]
        filled = fill(disk)
        process.go_on()
        assert process.finish() == 1
        assert f"last good checkpoint is step {good}" in process.output
        assert "cannot be written" in process.output
        assert "No space left" in process.output
        assert "Traceback" not in process.output.splitlines()[-1]
        assert process.checkpoints() == [good]
        filled.unlink()

        process = Process(tiny, process.workdir, "--gin.Training.on_failed_save=continue")
        # What has compiled has dropped the rows of the run before.
        process.until(lambda: "Compiled" in process.output and process.has_rows_behind(int(good)))
        filled = fill(disk)
        process.go_on()
        process.until(lambda: "Going on; the last good checkpoint is step" in process.output)
        assert f"from step {good}" in process.output
        filled.unlink()
        process.go_on()
        assert process.finish() == 0, process.output
        # No row of metrics is lost, and not the last checkpoint.
        assert_same_run(process.workdir, undisturbed)


@pytest.mark.parametrize("leaving", [0, 200_000])
def test_after_a_full_disk_checkpoints_are_known_and_replaced_as_before(tmp_path, leaving):
    """Whether it was full at once or in the middle of the writing."""
    with small_disk(tmp_path / "disk", "6m") as disk:
        checkpoints = Checkpoints(epath.Path(disk / "run"), keep=1)
        on_disk = disk / "run" / "checkpoints"

        def save(step):
            checkpoints.save(make_state(step, size=2000), make_data(step), {}, loss=1 / step)
            checkpoints.wait()

        with contextlib.closing(checkpoints):
            save(1)
            for step in (2, 4):
                filled = fill(disk, leaving)
                with pytest.raises(FailedSaveError):
                    save(step)
                assert checkpoints.all_steps() == [step - 1]
                filled.unlink()
                save(step + 1)
                assert [path.name for path in on_disk.iterdir()] == [str(step + 1)]


def test_the_last_checkpoint_must_be_written(tiny, finished, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.save", full)
    before = files(finished / "checkpoints")
    with pytest.raises(FailedSaveError, match=f"step {STEPS + 1} .* last good .* step {STEPS}"):
        train(
            tiny, finished, f"Training.steps = {STEPS + 1}", "Training.on_failed_save = 'continue'"
        )
    assert files(finished / "checkpoints") == before


@pytest.fixture
def prepared(tiny, tmp_path):
    """A copy of the prepared data, and its config."""
    shutil.copytree(tiny / "data", tmp_path / "data")
    return tmp_path / "data", load(tiny, f"Data.directory = '{tmp_path}/data'").data


@pytest.mark.parametrize("kind", ["pairs/train-*", "pairs/validation-*", "examples/validation*"])
def test_a_truncated_shard_is_named_and_mended(tiny, prepared, tmp_path, kind, caplog):
    directory, config = prepared
    before = files(directory)
    (shard,) = directory.glob(kind)
    os.truncate(shard, shard.stat().st_size // 2)
    if "pairs" in kind:
        with pytest.raises(DataError, match=f"{shard} is damaged.* which mends it"):
            train(tiny, tmp_path / "run", f"Data.directory = '{directory}'")
    assert not (tmp_path / "run").exists()
    prepare(config)
    assert f"{shard} is damaged" in caplog.text
    assert files(directory) == before


def test_a_shard_that_is_damaged_within_stops_the_reading(tiny, prepared, caplog):
    directory, config = prepared
    before = files(directory)
    (shard,) = directory.glob("pairs/train-*")
    content = bytearray(shard.read_bytes())
    content[200] ^= 1
    shard.write_bytes(content)
    experiment = load(tiny, f"Data.directory = '{directory}'")
    opened = Prepared.open(str(directory))
    data = pipeline.training_batches(
        experiment.pairs(opened, "train"), experiment.streams, experiment.batches, seed=0
    )
    with contextlib.closing(data), pytest.raises(DataError, match=f"{shard} is damaged"):
        next(data)
    prepare(config)
    assert files(directory) == before


@pytest.fixture(scope="module")
def poisoned(tiny, tmp_path_factory):
    """Data with one example, `zz`, whose loss is no number: `z` has no sound embedding.

    Gives bindings, for runs that do all else as they should.
    """
    directory = tmp_path_factory.mktemp("poisoned")
    for side, text in (("source", "zz"), ("target", "ba")):
        lines = (tiny / f"train.{side}").read_text()
        (directory / f"train.{side}").write_text(lines + f"{text}\n")
    bindings = [
        f"Data.directory = '{directory}/data'",
        "Data.target_vocabulary = @Vocabulary()",
        *(
            f"ParallelText.{side} = {{'train': '{directory}/train.{side}', "
            f"'validation': '$TINY/validation.{side}'}}"
            for side in ("source", "target")
        ),
        # An epoch has 8 updates.
        "Training.steps = 24",
        "Training.evaluate_every = 12",
        "Training.checkpoint_every = 12",
        "Training.log_every = 2",
        "Transformer.dropout = 0.0",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINY", str(tiny))
        loaded = load(tiny, *bindings)
        prepare(loaded.data)
        vocabulary = Prepared.open(loaded.data.directory).source_vocabulary
        (bad,) = set(vocabulary.encode("zz").tolist())
        init = Trainer.init

        def poison(self, rng, batch):
            def embedding(path, leaf):
                is_it = jax.tree_util.keystr(path).count("source") and leaf.ndim == 2
                return leaf.at[bad].set(jnp.nan) if is_it else leaf

            state = init(self, rng, batch)
            params = jax.tree_util.tree_map_with_path(embedding, state.params)
            return self.with_params(state, params)

        patch.setattr(Trainer, "init", poison)
        yield bindings


def test_a_batch_without_a_number_stops_the_run_and_is_named(poisoned, tiny, tmp_path):
    with pytest.raises(NotFiniteError) as caught:
        train(tiny, tmp_path / "run", *poisoned)
    message = str(caught.value)
    assert "loss nan" in message
    assert "1 rows are the reason" in message
    assert "'zz'" in message
    assert "Training.skip_nonfinite" in message


def test_a_batch_without_a_number_is_skipped_by_option(poisoned, tiny, tmp_path, caplog):
    bindings = [*poisoned, "Training.skip_nonfinite = 2"]  # an epoch ends with it, the next begins
    assert train(tiny, tmp_path / "straight", *bindings) == loop.Outcome(24, finished=True)
    skipped = [
        row["train/skipped"] for row in rows(tmp_path / "straight") if "train/skipped" in row
    ]
    assert sum(skipped) == caplog.text.count("Skipped update") >= 2
    assert caplog.text.count("'zz'") == sum(skipped)

    # All the others were made; and the same ones are skipped when it stops in between.
    train(tiny, tmp_path / "halves", *bindings, "Training.steps = 12")
    train(tiny, tmp_path / "halves", *bindings)
    assert rows(tmp_path / "halves") == rows(tmp_path / "straight")
    whole = saved(tmp_path / "straight", 24)
    assert_trees_equal(saved(tmp_path / "halves", 24), whole)
    (count,) = {
        int(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(whole["optimizer"])
        if "count" in jax.tree_util.keystr(path)
    }
    assert count == 24 - sum(skipped)
    for path, leaf in jax.tree_util.tree_leaves_with_path(whole["params"]):
        if "source_embedding" not in jax.tree_util.keystr(path):
            assert jnp.isfinite(leaf).all(), path


def test_the_second_run_on_a_workdir_is_refused(tiny, tmp_path):
    process = Process(tiny, tmp_path / "run")
    process.until(process.has_state)
    before = files(process.workdir)
    with pytest.raises(UserError, match=f"{process.workdir} .process {process.number} on "):
        train(tiny, process.workdir)
    assert files(process.workdir) == before
    process.kill()
    # Nothing is to be cleaned up.
    with lock.locked(process.workdir):
        pass
