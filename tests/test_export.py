"""The verb on a tiny trained model; what the files hold is shown in tests/interchange."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from absl import flags
from absl.testing import flagsaver

from bidi import config
from bidi import export as export_verb
from bidi.errors import UserError
from bidi.evaluation import restore
from bidi.experiment import load_run
from bidi.interchange import huggingface
from tests.interchange.transformers_layout import Layout

TARGET = (8, 6, 7)


@pytest.fixture
def export(trained, restore_once, tmp_path, capsys):
    """Runs the verb in this process: what it prints. The output is `tmp_path / "out"`."""

    def call(*arguments, workdir=None, bindings=()):
        config.define_flags()
        with flagsaver.flagsaver():
            workdir = workdir or trained.both
            flags.FLAGS(
                ["bidi.export", f"--workdir={workdir}", f"--output={tmp_path}/out", *arguments]
            )
            export_verb.main(list(bindings))
        return capsys.readouterr().out

    return call


def read(directory: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_the_direction_asked_for_is_written(trained, export, restore_once, tmp_path):
    experiment = load_run(str(trained.both), [])
    generator, _ = restore.restore_generator(str(trained.both), experiment, "best")
    (scores,) = generator.score(["ab"], [[TARGET]])
    printed = {}
    for direction, start in (("l2r", 2), ("r2l", 3)):
        output = tmp_path / "new" / direction
        printed[direction] = export(f"--direction={direction}", f"--output={output}")
        assert f"Wrote the {direction} model of step" in printed[direction]
        assert str(output) in printed[direction]
        files = read(output)
        assert files["source.spm"] == (trained.both / "source.model").read_bytes()
        assert files["target.spm"] == (trained.both / "target.model").read_bytes()
        layout = Layout(files)
        assert layout.config["decoder_start_token_id"] == start
        source_ids = json.loads(files["vocab.json"])
        source = [source_ids[piece] for piece in ("a", "b", "</s>")]
        target = list(TARGET if direction == "l2r" else TARGET[::-1])
        log_probs_TV = layout.log_probs(source, [start, *target])
        end = layout.config["eos_token_id"]
        log_prob = log_probs_TV[range(len(target) + 1), [*target, end]].sum()
        assert log_prob == pytest.approx(scores[direction][0], abs=1e-4)
    assert "reverse the tokens" in printed["r2l"]
    assert "reverse" not in printed["l2r"]


def test_a_model_of_one_direction_needs_no_flag(trained, export, tmp_path):
    export(workdir=trained.r2l)
    assert Layout(read(tmp_path / "out")).config["decoder_start_token_id"] == 3


def test_bindings_change_the_search(export, tmp_path):
    export("--direction=l2r", bindings=["Search.beam_size = 2"])
    assert json.loads(read(tmp_path / "out")["generation_config.json"])["num_beams"] == 2


def test_refusals_write_nothing(trained, export, tmp_path, monkeypatch):
    for arguments, workdir, says in (
        (["--output="], None, "--output is missing"),
        ([], None, "choose one by --direction"),
        (["--direction=l2r"], trained.r2l, "this model writes r2l alone"),
        (["--direction=l2r", f"--partner_workdir={trained.l2r}"], trained.r2l, "each model by its"),
    ):
        with pytest.raises(UserError, match=says):
            export(*arguments, workdir=workdir)

    def refuse(*_):
        raise UserError("no such model")

    monkeypatch.setattr(huggingface, "export_files", refuse)
    with pytest.raises(UserError, match="no such model"):
        export(workdir=trained.l2r)
    assert not list(tmp_path.iterdir())


def test_what_exists_is_left_alone(export, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    with pytest.raises(UserError, match=f"--output={output} exists already"):
        export("--direction=l2r")
    output.rmdir()
    output.write_text("mine")
    with pytest.raises(UserError, match=f"--output={output} exists already"):
        export("--direction=l2r")
    assert output.read_text() == "mine"


def test_a_directory_is_complete_or_absent(export, tmp_path, monkeypatch):
    write_bytes = pathlib.Path.write_bytes

    def fail_at_the_last(path, content):
        if path.name == "model.safetensors":
            raise OSError("no space left")
        return write_bytes(path, content)

    monkeypatch.setattr(pathlib.Path, "write_bytes", fail_at_the_last)
    with pytest.raises(OSError, match="no space left"):
        export("--direction=l2r")
    assert not list(tmp_path.iterdir())


def test_print_config_writes_nothing(export, tmp_path, capsys):
    with pytest.raises(SystemExit):
        export("--print_config", "--output=", bindings=["Search.beam_size = 6"])
    assert "Search.beam_size = 6" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_real_call(trained, tmp_path):
    command = [sys.executable, "-m", "bidi.export", f"--workdir={trained.l2r}"]
    command.append(f"--output={tmp_path}/out")
    done = subprocess.run(command, capture_output=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert b"Wrote the l2r model" in done.stdout
    assert "model.safetensors" in read(tmp_path / "out")
