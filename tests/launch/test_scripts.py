"""What the scripts do around bidi, which is not run: a `python` that notes its calls stands in."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PYTHON = """#!/usr/bin/env bash
printf '%s ' "$@" >>"$CALLS"
echo >>"$CALLS"
case $* in
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  *" pip install "*) [[ ! -e "$CALLS.no_network" ]] ;;
  *bidi.train*)
    trap : INT # saves, and ends well
    kill -INT 0
    ;;
esac
"""


@pytest.fixture
def checkout(tmp_path):
    for folder in ("launch", "experiments"):
        ignored = shutil.ignore_patterns("results", "*.md", "*.gin", "__pycache__")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in ("python", "python3.11"):
        python = tmp_path / ".venv" / "bin" / name
        python.write_text(PYTHON)
        python.chmod(0o755)
    return tmp_path


def bash(checkout, *arguments, **environment):
    # In a process group of its own, as on a terminal; pytest may run where SIGINT is ignored.
    return subprocess.run(
        ["env", "--default-signal=INT", "bash", *arguments],
        cwd=checkout,
        env={**os.environ, "CALLS": str(checkout / "calls"), **environment},
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
        stdin=subprocess.DEVNULL,
    )


def calls(checkout, word):
    return [line for line in (checkout / "calls").read_text().splitlines() if word in line]


@pytest.mark.parametrize(
    "script",
    [
        ["launch/quickstart.sh"],
        ["experiments/cmudict/run.sh", "l2r", "r2l"],
        ["experiments/peers/run.sh"],
        ["experiments/peers/run.sh", "tiny"],
    ],
)
def test_ctrl_c_in_training_ends_the_script(checkout, script):
    done = bash(checkout, *script)
    assert done.returncode == -signal.SIGINT, done.stderr
    assert "bidi.train" in calls(checkout, "")[-1]


def test_ctrl_c_while_a_machine_is_made_makes_no_other(checkout):
    gcloud = checkout / "gcloud"
    gcloud.write_text(
        '#!/usr/bin/env bash\necho "$4" >>"$CALLS"\n'
        '[[ "$4" == list ]] || { trap "exit 1" INT; kill -INT 0; }\n'
    )
    gcloud.chmod(0o755)
    path = f"{checkout}:{os.environ['PATH']}"
    done = bash(checkout, "launch/tpu_vm.sh", "run", "--zone=z", "--", "x", PATH=path)
    assert done.returncode == 2
    assert "stopped by Ctrl-C; bidi may be there, and costs" in done.stderr
    assert calls(checkout, "") == ["list", "create"]


def test_a_tiny_comparison_leaves_the_full_one_alone(checkout):
    for size in ([], ["tiny"]):
        bash(checkout, "experiments/peers/run.sh", *size)
    full, tiny = calls(checkout, "bidi.train")
    assert "--workdir=runs/peers/multi30k" in full
    assert "--workdir=runs/peers_tiny/multi30k" in tiny
    assert "--gin.Training.steps=20 " in tiny


def make_environment(checkout, directory="another", requirements="requirements.txt"):
    made = 'set -e; source launch/environment.sh; make_environment "$@"'
    return bash(checkout, "-c", made, "bash", directory, "-r", requirements)


def test_an_environment_is_installed_once_for_what_is_asked(checkout):
    requirements = checkout / "requirements.txt"
    requirements.write_text("one==1\n")
    for times, text in [(1, "one==1\n"), (1, "one==1\n"), (2, "one==2\n"), (2, "one==2\n")]:
        requirements.write_text(text)
        assert make_environment(checkout).returncode == 0
        assert len(calls(checkout, "pip install")) == times


def test_an_environment_that_was_half_made_is_made_by_the_next_run(checkout):
    (checkout / "requirements.txt").write_text("one==1\n")
    network = checkout / "calls.no_network"
    network.touch()
    assert make_environment(checkout).returncode == 1
    network.unlink()
    assert make_environment(checkout).returncode == 0
    assert len(calls(checkout, "pip install")) == 2


def test_an_environment_of_somebody_else_is_refused(checkout):
    (checkout / "another").mkdir()
    done = make_environment(checkout)
    assert done.returncode == 1
    assert "another is there already" in done.stderr
    assert not (checkout / "calls").exists()


def test_devices_are_for_cores_whatever_openmp_is_told(checkout):
    count = "source launch/environment.sh; echo $devices"
    environment = {"JAX_PLATFORMS": "cpu"}
    plain = bash(checkout, "-c", count, **environment).stdout
    assert int(plain) >= 1
    for name in ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT"):
        assert bash(checkout, "-c", count, **environment, **{name: "1"}).stdout == plain


ASK = """
import sys
sys.path.insert(0, "experiments/peers")
import serving
serving.COMMANDS["ends"] = ["bash", "-c", "exit 7"]
with serving.Served("ends", 1) as served:
    served._process.wait()
    served.ask("about")
"""


def test_a_system_that_ended_is_named_with_its_status(checkout):
    done = bash(checkout, "-c", 'exec "$0" -c "$1"', sys.executable, ASK)
    assert done.stderr.splitlines()[-1].startswith("RuntimeError: taskset")
    assert "bash -c 'exit 7' ended with status 7" in done.stderr
    assert "BrokenPipeError" not in done.stderr


def test_systems_do_not_inherit_what_is_set_for_bidi(checkout):
    shown = (
        'source launch/environment.sh; exec "$0" -c \'import sys; sys.path.insert(0, sys.argv[1]);'
        "import serving; print(*serving.environment(1))' experiments/peers"
    )
    done = bash(checkout, "-c", shown, sys.executable, JAX_PLATFORMS="cpu", OF_CALLER="1")
    assert "OF_CALLER" in done.stdout.split()
    assert not {"GLIBC_TUNABLES", "MALLOC_TOP_PAD_", "XLA_FLAGS"} & set(done.stdout.split())
