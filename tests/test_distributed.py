"""Several processes in fact: two of them train, on two virtual devices each.

Processes take long to start and to compile: they are few, and share one compilation cache. What
processes do beside training is in test_two_processes.py.
"""

import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest
from absl import flags
from absl.testing import flagsaver

from bidi import distributed, experiment
from bidi.data.prepare import prepare
from bidi.errors import ConfigError
from bidi.evaluation.restore import restore_generator
from bidi.training import loop
from bidi.training.checkpoints import ProcessesError
from tests import xla_flags
from tests.stoppable_run import EXPERIMENT, rows, saved
from tests.training.tiny import assert_trees_close, assert_trees_equal

STEPS, SAVED_EVERY = 24, 8
TIMEOUT = 300  # for a busy machine; nothing waits for it to pass
TRAIN = """
from bidi import distributed, train, verb
distributed._HEARTBEAT_SECONDS = 10
verb.run("bidi.train", train.main, processes=True)
"""
# The second process has no room for the second checkpoint, and for the third less than it thought.
FAILING = """
import pathlib, shutil
import grain, jax
usage, save, calls = shutil.disk_usage, grain.checkpoint.CheckpointHandler.save, []

def disk_usage(path):
    calls.append(path)
    if jax.process_index() == 1 and len(calls) == 2:
        return usage(path)._replace(free=10)
    return usage(path)

def save_place(self, directory, *arguments, **more):
    if jax.process_index() == 1 and pathlib.Path(directory).parts[-2].startswith("24"):
        raise OSError(28, "No space left on device")
    return save(self, directory, *arguments, **more)

shutil.disk_usage = disk_usage
grain.checkpoint.CheckpointHandler.save = save_place
"""
BINDINGS = [
    # Masks depend on the partitioner; a small eps would make rounding large.
    "Transformer.dropout = 0.0",
    "Optimizer.eps = 0.001",
    f"Training.steps = {STEPS}",
    f"Training.evaluate_every = {SAVED_EVERY}",
    f"Training.checkpoint_every = {SAVED_EVERY}",
    "Training.log_every = 1",
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A directory with an experiment file and its prepared data."""
    directory = tmp_path_factory.mktemp("tiny")
    rng = random.Random(0)
    for split, count in (("train", 150), ("validation", 13)):
        words = ["".join(rng.choices("abcdefgh", k=rng.randint(1, 9))) for _ in range(count)]
        (directory / f"{split}.source").write_text("\n".join(words) + "\n")
        (directory / f"{split}.target").write_text("\n".join(w[::-1] for w in words) + "\n")
    (directory / "tiny.gin").write_text(EXPERIMENT + "\n".join(BINDINGS) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINY", str(directory))
        prepare(load(directory).data)
        yield directory


def load(directory, *bindings):
    return experiment.load([str(directory / "tiny.gin")], bindings)


def environment(cache):
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count=2 {xla_flags.QUICK}",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


class Two:
    """A command in two processes."""

    def __init__(self, log, cache, command, flags_of_process, environment_of_process=lambda n: {}):
        self._logs = [log.with_name(f"{log.name}-{n}-{time.monotonic_ns()}.log") for n in (0, 1)]
        self.processes = []
        for number, path in enumerate(self._logs):
            with path.open("w") as file:
                self.processes.append(
                    subprocess.Popen(
                        [*command, *flags_of_process(number)],
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        env=environment(cache) | environment_of_process(number),
                    )
                )

    @property
    def outputs(self):
        return [path.read_text() for path in self._logs]

    def finish(self):
        """The exit codes."""
        return [process.wait(TIMEOUT) for process in self.processes]


class Training(Two):
    """`python -m bidi.train` in two processes."""

    def __init__(self, tiny, workdir, *flags, before=""):
        self.workdir, port = workdir, free_port()
        super().__init__(
            workdir,
            tiny / "cache",
            [
                *(sys.executable, "-c", before + TRAIN),
                *(f"--gin_file={tiny}/tiny.gin", f"--workdir={workdir}"),
                *(f"--coordinator=127.0.0.1:{port}", "--processes=2", *flags),
            ],
            lambda number: [f"--process={number}"],
        )

    def until(self, condition):
        """Waits for a condition."""
        end = time.monotonic() + TIMEOUT
        while not condition():
            running = all(process.poll() is None for process in self.processes)
            assert running, f"one ended before {condition}: {self.outputs}"
            assert time.monotonic() < end, self.outputs
            time.sleep(0.002)

    def last_row(self):
        written = rows(self.workdir)
        return written[-1]["step"] if written else 0

    def checkpoints(self):
        """Steps of the complete ones."""
        paths = (self.workdir / "checkpoints").glob("*")
        return sorted(int(path.name) for path in paths if path.name.isdigit())


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# Not `undisturbed`, by which conftest.py would have one process run this file and test_train.py.
@pytest.fixture(scope="module")
def uninterrupted(tiny):
    """The workdir of a run that nothing stopped, started by launch/local.sh."""
    workdir = tiny / "uninterrupted"
    local = pathlib.Path(__file__).parent.parent / "launch" / "local.sh"
    done = subprocess.run(
        [
            *("bash", str(local), f"--logs={tiny}/logs", "2", "--", sys.executable, "-m"),
            *("bidi.train", f"--gin_file={tiny}/tiny.gin", f"--workdir={workdir}"),
        ],
        env=environment(tiny / "cache"),
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stderr
    assert "2 processes, 4 devices" in done.stderr
    assert f"{STEPS} updates in" in done.stderr
    # What libraries in C++ print, not this program.
    assert "Gloo" not in done.stdout
    # The second has nothing to say but that it found the first.
    assert "step" not in (tiny / "logs" / "process-1.log").read_text()
    return workdir


def test_stopped_then_killed_a_run_goes_on_as_if_it_had_not_been(tiny, uninterrupted):
    run = Training(tiny, tiny / "run")
    run.until(lambda: run.last_row() >= 3)
    run.processes[1].send_signal(signal.SIGTERM)
    assert run.finish() == [0, 0], run.outputs
    (step,) = run.checkpoints()
    assert 3 <= step < SAVED_EVERY
    assert f"Stopped at step {step} of {STEPS}" in run.outputs[0]
    assert "Stopped" not in run.outputs[1]
    assert run.last_row() == step

    run = Training(tiny, run.workdir)
    run.until(lambda: run.checkpoints()[-1] >= SAVED_EVERY < run.last_row())
    run.processes[1].kill()
    killed = time.monotonic()
    assert run.finish()[0] != 0
    assert time.monotonic() - killed < 60
    assert f"from step {step}" in run.outputs[0]
    assert run.checkpoints()[-1] < STEPS

    # What only one of them reads is damaged: both take the checkpoint before.
    *_, before, newest = run.checkpoints()
    place = run.workdir / "checkpoints" / str(newest) / "data" / "process_1-of-2.json"
    place.write_text(place.read_text()[:-9])
    run = Training(tiny, run.workdir)
    assert run.finish() == [0, 0], run.outputs
    assert f"Checkpoint of step {newest}: JSONDecodeError" in run.outputs[0]
    assert f"from step {before}" in run.outputs[0]
    assert rows(run.workdir) == rows(uninterrupted)
    assert_trees_equal(saved(run.workdir, STEPS), saved(uninterrupted, STEPS))


def test_a_divided_state_is_saved_and_restored_by_all_or_by_none(tiny, uninterrupted):
    """Each device has a quarter of the state. All go on without a checkpoint, or all stop."""
    bindings = ["partitioner=mesh", "on_failed_save=continue"]
    mesh = [f"--gin.Training.{binding}" for binding in bindings]
    mesh += ["--gin.Mesh.data=1", "--gin.Mesh.fsdp=4"]
    run = Training(tiny, tiny / "mesh", *mesh, before=FAILING)
    codes = run.finish()
    assert codes[0] != 0, run.outputs
    assert codes[1] == 1, run.outputs
    for output in (run.outputs[0], run.outputs[1]):
        assert "of step 8 cannot" not in output
    assert "of step 16 cannot be written" in run.outputs[0]
    assert "by process 1: 10 bytes are left" in run.outputs[0]
    assert "Going on; the last good checkpoint is step 8" in run.outputs[0]
    assert "No space left" in run.outputs[1]
    assert "the last good checkpoint is step 8" in run.outputs[1]
    assert run.checkpoints() == [8]

    run = Training(tiny, run.workdir, *mesh)
    assert run.finish() == [0, 0], run.outputs
    assert "from step 8" in run.outputs[0]
    assert run.checkpoints()[-2:] == [16, 24]
    # What Pmap gives, but for rounding.
    for row, expected in zip(rows(run.workdir), rows(uninterrupted), strict=True):
        assert row == pytest.approx(expected, rel=1e-3)
    expected = saved(uninterrupted, STEPS)
    assert_trees_close(saved(run.workdir, STEPS)["ema"], expected["ema"], rtol=1e-2, atol=1e-4)
    # One process, on other devices, searches with it.
    loaded = experiment.load_run(str(run.workdir), [])
    generator, step = restore_generator(str(run.workdir), loaded, "latest")
    assert step == STEPS
    assert_trees_equal(jax.device_get(generator.params), saved(run.workdir, STEPS)["ema"])


def test_the_first_process_writes_for_all(uninterrupted):
    written = rows(uninterrupted)
    assert [row["step"] for row in written if "train/loss" in row] == list(range(1, STEPS + 1))
    assert [row["step"] for row in written if "validation/loss" in row] == [8, 16, 24]
    assert {path.name for path in uninterrupted.iterdir()} == {
        "checkpoints", "config.gin", "data.json", "lock", "metrics.jsonl",
        "provenance.json", "source.model", "target.model", "tensorboard",
    }  # fmt: skip
    assert len(list((uninterrupted / "tensorboard").iterdir())) == 1
    places = (uninterrupted / "checkpoints" / str(STEPS) / "data").glob("*.json")
    assert sorted(p.name for p in places) == [f"process_{n}-of-2.json" for n in (0, 1)]


def test_another_number_of_processes_is_refused(tiny, uninterrupted, tmp_path):
    workdir = shutil.copytree(uninterrupted, tmp_path / "run")
    with pytest.raises(ProcessesError, match="saved by 2 processes, now there are 1"):
        loop.train(load(tiny, f"Training.steps = {STEPS + 8}"), workdir)
    assert not list(workdir.glob("unreadable*"))
    assert rows(workdir) == rows(uninterrupted)


@pytest.fixture
def its_flags():
    distributed.define_flags()
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["test"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"process": 1, "processes": 2}, "--coordinator is missing"),
        ({"coordinator": "here:80", "process": 1}, "--processes is missing"),
        ({"coordinator": "here", "processes": 2, "process": 1}, "--coordinator=here is no host:po"),
        ({"coordinator": "here:80", "processes": 2, "process": 2}, "counted from 0 to 1"),
        ({"distributed": True, "process": 0}, "leave out the one or the others"),
    ],
)
@pytest.mark.usefixtures("its_flags")
def test_flags_that_do_not_fit(values, message):
    with flagsaver.flagsaver(**values), pytest.raises(ConfigError, match=message):
        distributed.initialize()
    assert not distributed.joined()


@pytest.mark.usefixtures("its_flags")
def test_process_0_must_be_able_to_listen():
    with socket.create_server(("", 0)) as taken:
        values = {"coordinator": f"localhost:{taken.getsockname()[1]}", "processes": 2}
        with flagsaver.flagsaver(process=0, **values), pytest.raises(ConfigError, match="cannot l"):
            distributed.initialize()


@pytest.mark.usefixtures("its_flags")
def test_all_must_have_equally_many_devices(monkeypatch):
    for name, result in (("initialize", None), ("is_initialized", True)):
        monkeypatch.setattr(jax.distributed, name, lambda *_, result=result, **__: result)
    monkeypatch.setattr(distributed, "_keep_standard_output", lambda: None)
    monkeypatch.setattr(jax, "local_device_count", lambda: jax.device_count() - 1)
    values = {"coordinator": "localhost:80", "processes": 2, "process": 1}
    with flagsaver.flagsaver(**values), pytest.raises(ConfigError, match="must have equally many"):
        distributed.initialize()


def local(*arguments, path=os.environ["PATH"]):
    script = pathlib.Path(__file__).parent.parent / "launch" / "local.sh"
    command = ["bash", str(script), *arguments]
    # No accelerator, and nothing that the caller has set.
    environment = {"PATH": path, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("cores", "devices"), [(1, 1), (2, 1), (7, 2), (96, 4)])
def test_local_prints_its_commands(tmp_path, cores, devices):
    """Each process has its share of the virtual devices, which are as many as the cores allow."""
    nproc = tmp_path / "bin" / "nproc"
    nproc.parent.mkdir()
    nproc.write_text(f"#!/bin/sh\necho {cores}\n")
    nproc.chmod(0o755)
    done = local(
        *("--dry_run", f"--logs={tmp_path}/logs", "2", "--", "verb", "--gin.A=(1, 2)"),
        path=f"{nproc.parent}:{os.environ['PATH']}",
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0
    assert len(lines) == 2
    for number, line in enumerate(lines):
        assert f"device_count={devices} " in line
        assert r"verb --gin.A=\(1\,\ 2\) --coordinator=127.0.0.1:" in line
        assert f"--processes=2 --process={number}" in line
    assert list(tmp_path.iterdir()) == [nproc.parent]


def test_local_stops_all_if_one_fails(tmp_path):
    script = 'case "$*" in *--process=1*) echo sad; exit 5;; esac; exec sleep 100'
    start = time.monotonic()
    done = local(f"--logs={tmp_path}", "3", "--", "bash", "-c", script)
    assert done.returncode == 5
    assert "process 1 ended with status 5" in done.stderr
    assert "sad" in done.stderr
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("arguments", [[], ["2"], ["--", "verb"], ["0", "--", "verb"]])
def test_local_says_what_is_missing(arguments):
    done = local(*arguments)
    assert done.returncode == 2
    assert "launch/local.sh: " in done.stderr
