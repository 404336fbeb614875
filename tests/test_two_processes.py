"""What tests/two_processes.py saw: two processes agree, refuse, and search, as one would."""

import json
import pickle
import shutil
import sys

import numpy as np
import pytest
from absl import flags

from bidi import config
from tests import two_processes
from tests.test_distributed import Two, free_port
from tests.test_evaluate import rounded, strict, without
from tests.trained_run import TEST_SOURCES
from tests.training.tiny import assert_trees_close, assert_trees_equal


@pytest.fixture(scope="module")
def seen(trained, tmp_path_factory):
    """What each process saw, and where; SLURM says which it is."""
    directory = tmp_path_factory.mktemp("two")
    prepare_directory(trained, directory)
    port = free_port()

    def slurm(number):
        return {
            "SLURM_JOB_ID": "7",
            "SLURM_STEP_NODELIST": "127.0.0.1",
            "SLURM_NTASKS": "2",
            "SLURM_PROCID": str(number),
            "SLURM_LOCALID": str(number),
            "JAX_COORDINATOR_PORT": str(port),
        }

    command = [sys.executable, "-m", "tests.two_processes", "--distributed"]
    run = Two(
        directory / "log",
        directory / "cache",
        [*command, f"--directory={directory}"],
        lambda number: [],
        slurm,
    )
    codes = run.finish()
    assert "two_processes: the second gives up" in run.outputs[1], run.outputs
    assert codes[0] != 0
    assert codes[1] == 1
    return [pickle.loads((directory / f"{n}.pickle").read_bytes()) for n in (0, 1)], directory


def prepare_directory(trained, directory):
    ignore = shutil.ignore_patterns("eval")
    shutil.copytree(trained.both, directory / "both", ignore=ignore)
    (directory / "source").write_text("".join(f"{source}\n" for source in TEST_SOURCES[:7]))


def test_processes_agree(seen):
    for one in seen[0]:
        assert one["gathered"] == ["", "x"]
        assert one["shares"] == [
            [], ["aa0"], ["aa0", "bb1"], ["aa0", "bb1", "cc2", "dd3", "ee4", "ff5", "gg6"],
        ]  # fmt: skip
        # What one wants, all know at the next vote, and not before.
        assert one["votes"] == [False, False, False, True, False]


def test_what_the_first_cannot_do_all_refuse(seen):
    for one in seen[0]:
        assert one["error"] == "the first says no"
        assert "Training.seed = 5 (it has 0)" in one["refused"]
        assert "none" in one["unreadable"]


def test_processes_that_were_started_otherwise_are_refused(seen):
    for one in seen[0]:
        assert one["alike"] is None
        assert one["unlike"].startswith("process 1 has seed = 1, process 0 has 0: start all with")
        assert "process 1 has Search.beam_size = 5, process 0 has 4" in one["other flags"]


def test_parameters_are_those_of_one_process(seen):
    expected = two_processes.train(two_processes.make_pmap(devices=4))
    for one in seen[0]:
        assert_trees_close(one["trained"], expected, rtol=1e-4, atol=1e-6)
    assert_trees_equal(*(one["trained"] for one in seen[0]))
    assert np.ptp(expected[1]) > 0.1


def test_searches_give_what_one_process_gives(seen, trained, tmp_path, restore_once):
    (first, second), directory = seen
    prepare_directory(trained, tmp_path)
    config.define_flags()
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["test"])
    expected = two_processes.run_verbs(tmp_path)
    assert second["printed"] == ["", "", ""]
    names = {path.name for path in (tmp_path / "both" / "eval").iterdir()}
    assert {path.name for path in (directory / "both" / "eval").iterdir()} == names
    for name in names:
        ours, theirs = (at / "both" / "eval" / name for at in (directory, tmp_path))
        if ours.suffix == ".txt":
            assert ours.read_text() == theirs.read_text()
            continue
        ours, theirs = strict(ours.read_text()), strict(theirs.read_text())
        if isinstance(ours, list):  # the choices of agreement
            assert rounded(ours) == rounded(theirs)
            continue
        for key in ("sentences", "truncated"):
            assert ours.get("speed", {}).get(key) == theirs.get("speed", {}).get(key)
        different = ("speed", "provenance", "workdirs")
        assert rounded(without(ours, *different)) == rounded(without(theirs, *different))
    ours, theirs = (
        [rounded(json.loads(line)) for line in printed[2].splitlines()]
        for printed in (first["printed"], expected)
    )
    assert len(ours) == 7
    assert ours == theirs
