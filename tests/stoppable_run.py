"""`bidi.train` in processes that can be stopped anywhere, on words and their mirror images.

Every run is one of a few: they share one compilation cache, so only the first compiles.
"""

import contextlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import orbax.checkpoint as ocp
import pytest

from bidi import experiment
from bidi.data.prepare import prepare
from bidi.training import loop
from tests import xla_flags
from tests.training.tiny import assert_trees_equal

# Far enough that a busy machine does not reach the end between two looks at the run.
STEPS, SAVED_EVERY = 300, 60
# Enough for a first run on a busy machine; nothing waits for it to pass.
TIMEOUT = 300

EXPERIMENT = f"""
Data.directory = '$TINY/data'
Data.source = @ParallelText()
Data.source_vocabulary = @Vocabulary()
ParallelText.source = {{'train': '$TINY/train.source', 'validation': '$TINY/validation.source'}}
ParallelText.target = {{'train': '$TINY/train.target', 'validation': '$TINY/validation.target'}}
Vocabulary.model_type = 'char'

Batches.rows = 8
Batches.source_length = 20
Batches.target_length = 20
Batches.packing_bins = 4

Transformer.encoder_layers = 0
Transformer.decoder_layers = 1
Transformer.model_size = 8
Transformer.heads = 1
Transformer.feedforward_size = 8
Transformer.interaction = 'none'
Search.coupling = 'none'

Optimizer.warmup_steps = 20
Training.steps = {STEPS}
Training.evaluate_every = 30
Training.checkpoint_every = {SAVED_EVERY}
Training.log_every = 5
Training.ema_decay = 0.99
"""


def make(directory):
    """Writes the experiment file and prepares its data."""
    rng = random.Random(0)
    for split, count in (("train", 150), ("validation", 12)):
        words = ["".join(rng.choices("abcdefgh", k=rng.randint(1, 9))) for _ in range(count)]
        (directory / f"{split}.source").write_text("\n".join(words) + "\n")
        (directory / f"{split}.target").write_text("\n".join(w[::-1] for w in words) + "\n")
    (directory / "tiny.gin").write_text(EXPERIMENT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINY", str(directory))
        prepare(load(directory).data)
        yield directory


def train(directory, workdir, *bindings, **kinds):
    """In this process."""
    return loop.train(load(directory, *bindings, **kinds), workdir)


def load(directory, *bindings, file="tiny.gin"):
    return experiment.load([str(directory / file)], bindings)


class Process:
    """`python -m bidi.train` on two virtual devices."""

    def __init__(self, tiny, workdir, *flags):
        self.workdir = pathlib.Path(workdir)
        self._log = self.workdir.with_name(f"{self.workdir.name}-{time.monotonic_ns()}.log")
        arguments = [f"--gin_file={tiny / 'tiny.gin'}", f"--workdir={workdir}", *flags]
        environment = {
            **os.environ,
            "TINY": str(tiny),
            "JAX_PLATFORMS": "cpu",
            # Every run is compared with others of the same kind.
            "XLA_FLAGS": f"--xla_force_host_platform_device_count=2 {xla_flags.QUICK}",
            "JAX_COMPILATION_CACHE_DIR": str(tiny / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bidi.train", *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )

    @property
    def output(self):
        return self._log.read_text()

    @property
    def number(self):
        return self._process.pid

    def finish(self):
        """The exit code."""
        return self._process.wait(TIMEOUT)

    def send(self, number):
        self._process.send_signal(number)

    def until(self, condition):
        """Waits for a condition and stops the process (SIGSTOP) while it holds."""
        end = time.monotonic() + TIMEOUT
        while time.monotonic() < end:
            assert self._process.poll() is None, f"it ended before {condition}:\n{self.output}"
            if condition():
                self.send(signal.SIGSTOP)
                os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)
                if condition():
                    return self
                self.go_on()
            time.sleep(0.001)
        raise TimeoutError(self.output)

    def go_on(self):
        """After `until`."""
        self.send(signal.SIGCONT)

    def go_on_for(self, seconds):
        """After `until`; it may end meanwhile."""
        self.go_on()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)

    def kill(self):
        self.send(signal.SIGKILL)
        assert self.finish() == -signal.SIGKILL
        return self

    def rows(self):
        return rows(self.workdir)

    def checkpoints(self):
        """The names in the directory of checkpoints, complete ones first, oldest first."""
        directory = self.workdir / "checkpoints"
        names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
        return sorted(names, key=lambda name: (not name.isdigit(), int(name.partition(".")[0])))

    def newest_checkpoint(self):
        """Its step, 0 where there is none."""
        return max((int(name) for name in self.checkpoints() if name.isdigit()), default=0)

    def until_step(self, step):
        """`until` it has reported this step itself, not a run before it."""

        def is_there():
            rows = self.rows()
            return "Compiled" in self.output and rows and rows[-1]["step"] >= step

        return self.until(is_there)

    def rows_behind_the_checkpoint(self):
        """Whether updates were reported that no checkpoint holds, and more are to come."""
        names = self.checkpoints()
        if not names or not all(name.isdigit() for name in names):
            return False
        return self.has_rows_behind(int(names[-1]))

    def has_state(self):
        """Whether it has begun, or has read where it goes on."""
        return "New run" in self.output or "Resuming" in self.output

    def has_rows_behind(self, step):
        """Whether updates behind this one were reported, and more are to come."""
        return step < self.rows()[-1]["step"] < STEPS

    def is_saving(self):
        """Whether a checkpoint is being written behind two complete ones."""
        names = self.checkpoints()
        return len(names) > 2 and any("tmp" in name for name in names)


def rows(workdir):
    """Rows of metrics that are written in full, without what depends on the clock."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [
        {k: v for k, v in json.loads(line).items() if "second" not in k}
        for line in lines
        if line.endswith("\n")
    ]


def saved(workdir, step=STEPS):
    """Parameters, optimiser's state and moving average of a checkpoint, by no code of ours."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    trees = {}
    with ocp.StandardCheckpointer() as checkpointer:
        for item in ("params", "optimizer", "ema"):
            path = workdir.absolute() / "checkpoints" / str(step) / item
            shapes = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
                checkpointer.metadata(path).item_metadata.tree,
            )
            trees[item] = checkpointer.restore(path, shapes)
    return trees


def files(workdir):
    """Every file's content but for what says when and by what commit a run was started."""
    return {
        str(path.relative_to(workdir)): path.read_bytes()
        for path in workdir.rglob("*")
        if path.is_file() and path.name != "provenance.json"
    }


def assert_same_run(workdir, undisturbed):
    assert rows(workdir) == rows(undisturbed)
    assert_trees_equal(saved(workdir), saved(undisturbed))
