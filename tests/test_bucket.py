"""Data, runs and outputs in a bucket: the same as on a file system, and nothing beside it."""

import io
import json
import os
import pathlib
import shutil
import signal
import sys

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from bidi import compare, config, evaluate, experiment, export, pseudo, train, translate, verb
from bidi import prepare as prepare_verb
from bidi.data import prepare
from bidi.data.prepared import Prepared
from bidi.data.pseudo import PseudoOutputs
from bidi.data.tfds import Tfds
from bidi.errors import DataError, PathError, UserError
from bidi.evaluation.restore import restore_generator
from bidi.files import matching, path_of, writing_whole
from bidi.training import checkpoints
from bidi.training.lock import locked
from bidi.training.report import Reporter
from tests import fake_bucket
from tests.trained_run import TEST_SOURCES

DATA = ["Data.directory = 'gs://bucket/data'"]
RUN = "gs://bucket/runs/both"
# After the first row of metrics, and one more update.
STOPPED = 31


def call(verb, *arguments, bindings=()):
    config.define_flags()
    with flagsaver.flagsaver():
        flags.FLAGS([verb.__name__, *map(str, arguments)])
        verb.main(list(bindings))


@pytest.fixture(scope="module")
def buckets(tmp_path_factory):
    """Where they lie; nothing may appear in the current directory."""
    root, here = tmp_path_factory.mktemp("buckets"), tmp_path_factory.mktemp("here")
    with pytest.MonkeyPatch.context() as patch:
        fake_bucket.install(patch, root)
        patch.setenv("BIDI_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.chdir(here)
        yield root
        assert not list(here.iterdir())


@pytest.fixture(scope="module")
def run(trained, buckets):
    """The run of `trained` once more: data and workdir in a bucket, stopped, gone on with."""
    gin_file = path_of("gs://bucket/run.gin")
    gin_file.write_text(trained.gin_file.read_text())
    call(prepare_verb, f"--gin_file={gin_file}", bindings=DATA)
    arguments = (f"--gin_file={gin_file}", f"--workdir={RUN}")
    with pytest.MonkeyPatch.context() as patch:
        write = Reporter.write

        def write_and_stop(self, step, row):
            write(self, step, row)
            os.kill(os.getpid(), signal.SIGTERM)

        patch.setattr(Reporter, "write", write_and_stop)
        call(train, *arguments, bindings=DATA)
    # No checkpoint was due yet.
    assert [path.name for path in (path_of(RUN) / "checkpoints").iterdir()] == [str(STOPPED)]
    call(train, *arguments, bindings=DATA)
    return path_of(RUN)


def lines(path):
    return path.read_text().splitlines()


def test_the_data_are_the_same(run, trained):
    there, here = Prepared.open("gs://bucket/data"), Prepared.open(str(trained.data))
    assert there.manifest == here.manifest
    for split in ("train", "validation", "test"):
        pairs = zip(
            there.pairs(split).__getitems__(range(8)),
            here.pairs(split).__getitems__(range(8)),
            strict=True,
        )
        for one, other in pairs:
            jax.tree.map(np.testing.assert_array_equal, one, other)
    assert there.examples("test") == here.examples("test")


def test_a_run_stopped_and_gone_on_with_ends_the_same(run, trained):
    loaded = experiment.load_run(RUN, [])
    there, step = restore_generator(RUN, loaded, "latest")
    here, same = restore_generator(str(trained.both), loaded, "latest")
    assert step == same
    jax.tree.map(np.testing.assert_array_equal, there.params, here.params)

    def losses(workdir):
        rows = map(json.loads, lines(workdir / "metrics.jsonl"))
        return {row["step"]: row["validation/loss"] for row in rows if "validation/loss" in row}

    assert losses(run) == losses(trained.both) != {}
    (_, first), (_, second) = (
        (path.name, path.read_bytes()) for path in sorted((run / "tensorboard").iterdir())
    )
    assert b"train/loss" in first
    assert b"validation/loss" in second


@pytest.mark.usefixtures("restore_once")
def test_evaluate_translate_and_compare(run, trained, tmp_path, monkeypatch, capsys):
    local = shutil.copytree(trained.both, tmp_path / "both")
    for workdir in (run, local):
        call(evaluate, f"--workdir={workdir}")
    report = "eval/test-none-beam4"
    assert lines(run / f"{report}.txt") == lines(local / f"{report}.txt")
    results = json.loads((run / f"{report}.json").read_text())
    assert results["workdirs"] == [RUN]
    capsys.readouterr()
    call(compare, f"--a={run}/{report}.json", f"--b={local}/{report}.json")
    assert "Wrong in both" in capsys.readouterr().out

    output = path_of("gs://bucket/new/outputs.txt")
    path_of("gs://bucket/sources.txt").write_text("".join(f"{s}\n" for s in TEST_SOURCES))
    call(translate, f"--workdir={run}", "--input=gs://bucket/sources.txt", f"--output={output}")
    assert lines(output) == lines(run / f"{report}.txt")
    # What cannot be read to its end leaves the former output.
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"abc\n\xff\n")))
    with pytest.raises(DataError, match="not UTF-8"):
        call(translate, f"--workdir={run}", f"--output={output}")
    assert lines(output) == lines(run / f"{report}.txt")


@pytest.mark.usefixtures("restore_once")
def test_pseudo_outputs(run, trained, tmp_path):
    outputs = [tmp_path / "labels", path_of("gs://bucket/labels")]
    for workdir, output in zip((trained.both, run), outputs, strict=True):
        workdirs = (f"--l2r_workdir={workdir}", f"--r2l_workdir={workdir}")
        call(pseudo, *workdirs, f"--output={output}", bindings=["Search.beam_size = 1"])
    prepared = Prepared.open("gs://bucket/data")
    there, here = (PseudoOutputs.open(str(output), prepared) for output in outputs)
    assert there.identity == here.identity
    assert len(there.outputs("train")) == len(prepared.pairs("train"))


@pytest.mark.usefixtures("restore_once")
def test_an_export_is_complete_or_lacks_its_config(run, monkeypatch):
    output = path_of("gs://bucket/exported")
    arguments = (f"--workdir={run}", f"--output={output}", "--direction=l2r")
    kind = type(output)
    write_bytes, written = kind.write_bytes, []
    monkeypatch.setattr(
        kind, "write_bytes", lambda self, data: written.append(self.name) or write_bytes(self, data)
    )
    call(export, *arguments)
    assert {path.name for path in output.iterdir()} == set(written)
    assert written[-1] == "config.json"


@pytest.mark.usefixtures("buckets")
def test_data_are_complete_or_have_no_manifest(trained, monkeypatch):
    directory = path_of("gs://bucket/stopped")
    bindings = [f"Data.directory = '{directory}'"]
    loaded = experiment.load([trained.gin_file], bindings).data
    upload = prepare.upload_directory

    def stop_half_way(source, directory, last):
        upload(source, directory, last="source.model")
        (directory / last).unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "upload_directory", stop_half_way)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(loaded)
    with pytest.raises(FileNotFoundError, match="holds no prepared data"):
        Prepared.open(str(directory))
    (directory / "pairs" / "train-00009-of-00010.array_record").write_text("of the stopped run")
    monkeypatch.setattr(prepare, "upload_directory", upload)
    (directory / "notes" / "mine.txt").write_text("dear")
    with pytest.raises(DataError, match=r"holds more than prepared data: notes\. Move that"):
        prepare.prepare(loaded)
    assert (directory / "notes" / "mine.txt").read_text() == "dear"
    (directory / "notes" / "mine.txt").unlink()
    manifest = prepare.prepare(loaded)
    assert len(Prepared.open(str(directory)).pairs("train")) == manifest["splits"]["train"]["pairs"]
    names = [path.name for path in directory.iterdir()]
    assert sorted(names) == ["examples", "manifest.json", "pairs", "source.model", "target.model"]

    # A shard that was cut off is noticed, and mended.
    (shard,) = matching(directory / "pairs", "train-*")
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        DataError, match=f"{shard} is damaged, .*: delete its copy here, /.*, run py"
    ):
        Prepared.open(str(directory)).pairs("train")
    assert prepare.prepare(loaded) == manifest
    assert shard.read_bytes() == whole

    # What others keep in a bucket is left alone.
    path_of("gs://bucket/others/thing").write_text("dear")
    other = [f"Data.directory = '{path_of('gs://bucket/others')}'"]
    with pytest.raises(DataError, match="holds no prepared data: choose another"):
        prepare.prepare(experiment.load([trained.gin_file], other).data)
    assert path_of("gs://bucket/others/thing").read_text() == "dear"


def test_a_damaged_checkpoint_is_set_aside(run, buckets, monkeypatch):
    steps = [int(path.name) for path in (run / "checkpoints").iterdir()]
    last = max(steps)
    copies = [path_of(f"gs://bucket/{name}") for name in ("damaged", "stopped-half-way")]
    for copy in copies:
        shutil.copytree(buckets / "bucket/runs/both", buckets / "bucket" / copy.name)
        (copy / "checkpoints" / str(last) / "metrics" / "metrics").write_text("{")

    def stop_half_way(source, target):
        (source / "metrics" / "metrics").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "move_directory", stop_half_way)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.Checkpoints(copies[1], keep=2)
    for copy in copies:
        opened = checkpoints.Checkpoints(copy, keep=2)
        assert sorted([*opened.all_steps(), last]) == sorted(steps)
        opened.close()
    aside = [path.name for path in (copies[0] / f"unreadable-{last}").iterdir()]
    assert "params" in aside


@pytest.mark.usefixtures("buckets")
def test_what_cannot_be_written_is_said_at_once_and_kept_at_the_end(buckets, monkeypatch):
    output = path_of("gs://bucket/elsewhere/outputs.txt")
    verb.check_output(str(output))
    assert not matching(output.parent, "*")

    def forbidden(self, content):
        raise OSError("403")

    monkeypatch.setattr(fake_bucket._Upload, "write", forbidden)
    with pytest.raises(UserError, match=r"--output=gs://bucket/elsewhere/outputs\.txt .*: 403"):
        verb.check_output(str(output))
    with pytest.raises(PathError, match="cannot be written: 403") as caught:
        write_outputs(output)
    kept = pathlib.Path(str(caught.value).rpartition(" ")[2])
    assert kept.read_text() == "hours of work"
    shutil.rmtree(kept.parent)


def write_outputs(path):
    with writing_whole(path) as file:
        file.write_text("hours of work")


def test_no_lock_is_said(caplog):
    with locked(path_of("gs://bucket/run")):
        assert "nothing keeps a second run out" in caplog.text
    assert not path_of("gs://bucket/run").exists()


@pytest.mark.usefixtures("buckets")
def test_what_cannot_be_read_from_a_bucket_says_so():
    with pytest.raises(PathError, match=r"Tfds.data_dir = 'gs://bucket/tfds' .*local directory"):
        next(
            Tfds("cmudict/plain", "word", "phonemes", data_dir="gs://bucket/tfds").examples("train")
        )
