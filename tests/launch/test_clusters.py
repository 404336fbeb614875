"""What the scripts for clusters would run; nothing of it is run."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
TRAIN = ("--gin_file=a b.gin", "--workdir=/mnt/shared/run")


def call(script, *arguments, **environment):
    return subprocess.run(
        ["bash", f"launch/{script}", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def commands(done):
    assert done.returncode == 0, done.stderr
    return [line[2:] for line in done.stderr.splitlines() if line.startswith("+ ")]


@pytest.mark.parametrize("script", ["tpu_vm.sh", "slurm.sbatch"])
def test_bash_can_read_them(script):
    assert subprocess.run(["bash", "-n", f"launch/{script}"], cwd=ROOT, check=False).returncode == 0


def test_jaxlib_knows_the_flags_that_are_set():
    """One that it does not know ends every process at its start."""
    flags = re.findall(r"--xla_\w+=\w+", (ROOT / "launch/environment.sh").read_text())
    assert flags
    done = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_tpu_run_from_making_the_machine_to_deleting_it():
    options = ("--zone=z", "--type=v6e-16", "--name=n", "--project=p", "--spot", "--delete")
    create, copy, install, train, delete = commands(
        call("tpu_vm.sh", "run", *options, "--dry_run", "--", *TRAIN)
    )
    for one in (create, copy, install, train, delete):
        assert one.startswith("gcloud compute tpus tpu-vm ")
        assert one.endswith("--zone=z --quiet --project=p")
    assert "create n --accelerator-type=v6e-16 --version=v2-alpha-tpuv6e --spot" in create
    assert "n:bidi.tar.gz --worker=all" in copy
    assert "install_bidi" in install
    # Quoted once for this shell and once for the worker's.
    shell = train.partition("--command=")[2].partition(" --zone")[0]
    there = subprocess.run(
        ["bash", "-c", f"printf %s {shell}"], capture_output=True, text=True, check=True
    ).stdout
    assert "exec python -m bidi.train --distributed" in there
    called = there.partition("exec ")[2]
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {called}"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert words == ["python", "-m", "bidi.train", "--distributed", *TRAIN]
    assert " delete n " in delete


@pytest.mark.parametrize(
    ("command", "verbs"),
    [("create", ["create"]), ("install", ["scp", "ssh"]), ("delete", ["delete"])],
)
def test_parts_of_a_tpu_run(command, verbs):
    found = commands(call("tpu_vm.sh", command, "--zone=z", "--dry_run"))
    assert [one.split()[4] for one in found] == verbs
    assert all(" bidi" in one for one in found)


@pytest.mark.parametrize(
    ("script", "arguments", "says"),
    [
        ("tpu_vm.sh", [], "say what to do"),
        ("tpu_vm.sh", ["create"], "--zone is missing"),
        ("tpu_vm.sh", ["run", "--zone=z"], "options of bidi.train are missing"),
        ("tpu_vm.sh", ["run", "--zone=z", "--gin_file=x"], "--gin_file=x is no option"),
        ("tpu_vm.sh", ["run", "--zone=z", "--tries=0", "--", "x"], "--tries=0"),
        ("slurm.sbatch", ["--dry_run"], "options of bidi.train are missing"),
    ],
)
def test_what_is_missing_is_named(script, arguments, says):
    done = call(script, *arguments, TPU_ZONE="")
    assert done.returncode == 2
    assert says in done.stderr


@pytest.mark.parametrize("script", ["tpu_vm.sh", "slurm.sbatch"])
def test_help(script):
    done = call(script, "--help")
    assert done.returncode == 0
    assert f"launch/{script}" in done.stdout
    assert "set -euo" not in done.stdout


def test_slurm():
    (command,) = commands(call("slurm.sbatch", "--dry_run", *TRAIN))
    assert command.startswith("srun --cpus-per-task=1 ")
    (command,) = commands(call("slurm.sbatch", "--dry_run", *TRAIN, SLURM_CPUS_PER_TASK="8"))
    assert command.startswith("srun --cpus-per-task=8 ")
    assert command.endswith(
        r"python -m bidi.train --distributed --gin_file=a\ b.gin --workdir=/mnt/shared/run"
    )


def a_machine(tmp_path, states):
    """A `gcloud` that notes its calls, and says of the machine what `states` say in turn."""
    (tmp_path / "states").write_text("\n".join(states) + "\n")
    gcloud = tmp_path / "gcloud"
    gcloud.write_text(
        "#!/usr/bin/env bash\n"
        f"cd {tmp_path}\n"
        'echo "$4" >>calls\n'
        'if [[ "$4" == list ]]; then head -n1 states; sed -i 1d states; fi\n'
        '[[ "$*" != *bidi.train* || -e trained ]] || { touch trained; exit 1; }\n'
    )
    gcloud.chmod(0o755)
    sleep = tmp_path / "sleep"
    sleep.write_text(f"#!/usr/bin/env bash\necho $1 >>{tmp_path}/slept\n")
    sleep.chmod(0o755)
    return f"{tmp_path}:{os.environ['PATH']}"


def test_a_preempted_machine_is_made_again(tmp_path):
    path = a_machine(tmp_path, ["", "PREEMPTED", "PREEMPTED"])
    done = call("tpu_vm.sh", "run", "--zone=z", "--", *TRAIN, PATH=path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "calls").read_text().split() == [
        *("list", "create", "scp", "ssh", "ssh", "list"),  # training fails, for it is gone
        *("list", "delete", "create", "scp", "ssh", "ssh"),
    ]


def test_a_run_that_was_asked_to_stop_goes_on_elsewhere(tmp_path):
    """It saves and ends well; the machine is taken away a moment later."""
    path = a_machine(tmp_path, ["", "READY", "PREEMPTED", "PREEMPTED"])
    gcloud = tmp_path / "gcloud"
    stopped = "echo 'Stopped at step 12 of 500; the same command goes on'"
    gcloud.write_text(gcloud.read_text().replace("exit 1", stopped))
    done = call("tpu_vm.sh", "run", "--zone=z", "--delete", "--", *TRAIN, PATH=path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "calls").read_text().split() == [
        *("list", "create", "scp", "ssh", "ssh", "list", "list"),
        *("list", "delete", "create", "scp", "ssh", "ssh", "delete"),
    ]
    assert "Stopped at step 12" in done.stdout


def test_a_run_that_was_stopped_by_hand_keeps_its_machine(tmp_path):
    path = a_machine(tmp_path, ["READY"] * 20)
    gcloud = tmp_path / "gcloud"
    gcloud.write_text(gcloud.read_text().replace("exit 1", "echo Stopped at step 12 of 500"))
    done = call("tpu_vm.sh", "run", "--zone=z", "--delete", "--", *TRAIN, PATH=path)
    assert done.returncode == 2
    assert "training was stopped, and bidi is still there" in done.stderr
    assert "delete" not in (tmp_path / "calls").read_text()


def test_a_preemption_may_be_told_late(tmp_path):
    path = a_machine(tmp_path, ["", "READY", "READY", "STOPPING", "STOPPING", "PREEMPTED", ""])
    done = call("tpu_vm.sh", "run", "--zone=z", "--", *TRAIN, PATH=path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "calls").read_text().split() == [
        *("list", "create", "scp", "ssh", "ssh", "list", "list", "list"),
        *("list", "list", "delete", "create", "scp", "ssh", "ssh"),
    ]


def test_a_run_that_fails_by_itself_is_not_tried_again(tmp_path):
    path = a_machine(tmp_path, ["READY"] * 20)
    done = call("tpu_vm.sh", "run", "--zone=z", "--", *TRAIN, PATH=path)
    assert done.returncode == 2
    assert "train failed, and bidi is still there" in done.stderr
    assert (tmp_path / "calls").read_text().split() == ["list", "scp", "ssh", "ssh", *["list"] * 8]
    assert (tmp_path / "slept").read_text().split() == ["15"] * 8


def test_a_machine_that_is_not_heard_at_first_is_asked_again(tmp_path):
    path = a_machine(tmp_path, [""])
    (tmp_path / "trained").touch()
    gcloud = tmp_path / "gcloud"
    silent = '[[ "$4" != scp || -e heard ]] || { touch heard; exit 1; }\n'
    gcloud.write_text(gcloud.read_text() + silent)
    done = call("tpu_vm.sh", "run", "--zone=z", "--delete", "--", *TRAIN, PATH=path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "calls").read_text().split() == [
        *("list", "create", "scp", "scp", "ssh", "ssh", "delete"),
    ]


def test_without_an_answer_nothing_is_made(tmp_path):
    path = a_machine(tmp_path, [""])
    (tmp_path / "gcloud").write_text("#!/usr/bin/env bash\nexit 1\n")
    done = call("tpu_vm.sh", "run", "--zone=z", "--", *TRAIN, PATH=path)
    assert done.returncode == 2
    assert "gcloud does not say how bidi is" in done.stderr
