"""Every test sees eight virtual CPU devices and strict shapes."""

import functools
import gc
import os
import re
import shutil

from tests import xla_flags

# Before jax is imported anywhere: the number of host devices is fixed at start-up.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {xla_flags.QUICK}"

import hypothesis
import jax
import pytest

from bidi.evaluation import restore
from tests import stoppable_run, trained_run

jax.config.update("jax_numpy_rank_promotion", "raise")
# Traces are millions of small objects, few of them garbage: Python's own threshold, 700, spends a
# tenth of the suite on looking through them.
gc.set_threshold(100_000, 50, 100)
# A first example compiles, and machines are busy: time is for the benchmark to judge.
hypothesis.settings.register_profile("bidi", deadline=None)
hypothesis.settings.load_profile("bidi")

# Fixtures that take long, and that the tests of many files use.
SHARED = ("trained", "undisturbed")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Each file is run by one process, those that share what takes long by the same one."""
    from xdist.scheduler import LoadFileScheduling

    class BySharedFixture(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return shared_fixture(config.rootpath / file) or file

    return BySharedFixture(config, log)


@functools.cache
def shared_fixture(file):
    """Which one a test or a fixture in this file asks for, if any."""
    text = file.read_text()
    return next(
        (name for name in SHARED if re.search(rf"^def \w+\([^)]*\b{name}\b", text, re.MULTILINE)),
        None,
    )


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> trained_run.TrainedRun:
    """A tiny model of two directions, trained once; and its directions as models of their own."""
    return trained_run.make(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="session")
def restored() -> dict:
    """What `restore_once` has restored so far."""
    return {}


@pytest.fixture
def restore_once(monkeypatch, restored):
    """One generator for all copies of a workdir of `trained`: it compiles its searches once.

    Evaluation.batch_tokens has no effect then.
    """
    restore_generator = restore.restore_generator

    def restore_or_reuse(workdir, experiment, checkpoint):
        key = (checkpoint, experiment.streams)
        if key not in restored:
            restored[key] = restore_generator(workdir, experiment, checkpoint)
        return restored[key]

    monkeypatch.setattr(restore, "restore_generator", restore_or_reuse)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A directory with an experiment file and its prepared data: words and their mirror images."""
    yield from stoppable_run.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def undisturbed(tiny):
    """The workdir of a run that nothing stopped."""
    process = stoppable_run.Process(tiny, tiny / "undisturbed")
    assert process.finish() == 0, process.output
    assert f"{stoppable_run.STEPS} updates in" in process.output
    return process.workdir


@pytest.fixture
def finished(undisturbed, tmp_path):
    """A copy of it."""
    return shutil.copytree(undisturbed, tmp_path / "finished")
