import subprocess
import sys

import pytest
from absl import flags
from absl.testing import flagsaver

from bidi import config
from bidi import prepare as verb


@pytest.fixture
def gin_file(tmp_path):
    (tmp_path / "text").write_text("ab\nbc\n\n")
    path = tmp_path / "tiny.gin"
    path.write_text(
        f"""
        Data.directory = '{tmp_path}/data'
        Data.source = @ParallelText()
        Data.source_vocabulary = @Vocabulary()
        ParallelText.source = {{'train': '{tmp_path}/text', 'test': '{tmp_path}/text'}}
        ParallelText.target = {{'train': '{tmp_path}/text', 'test': '{tmp_path}/text'}}
        Vocabulary.model_type = 'char'
        Transformer.interaction = 'none'
        Search.coupling = 'none'
        """
    )
    return str(path)


@pytest.fixture
def run(gin_file):
    """Runs the verb in this process with more flags."""

    def call(*arguments, bindings=()):
        config.define_flags()
        with flagsaver.flagsaver():
            flags.FLAGS(["bidi.prepare", f"--gin_file={gin_file}", *arguments])
            verb.main(list(bindings))

    return call


def test_data_are_prepared_and_counted(run, tmp_path, capsys):
    run()
    assert (tmp_path / "data" / "manifest.json").is_file()
    printed = capsys.readouterr().out
    assert f"{tmp_path}/data is ready" in printed
    assert "vocabularies: 9 source, 9 target" in printed
    assert ["train", "3", "2", "source", "2.0", "2", "2,", "target", "2.0", "2", "2"] in [
        line.split() for line in printed.splitlines()
    ]
    assert "dropped: {'empty': 1}" in printed
    run()
    assert capsys.readouterr().out == printed


def test_print_config_prepares_nothing(run, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run("--print_config")
    assert "Data.max_source_length" in capsys.readouterr().out
    assert not (tmp_path / "data").exists()


def test_cut_sources_are_shown(run, tmp_path, capsys):
    cut = ["Data.max_source_length = 1", "Data.truncate_source = True"]
    run(bindings=[*cut, f"Data.directory = '{tmp_path}/cut'"])
    assert "truncated sources: 2" in capsys.readouterr().out
    run()
    assert "truncated" not in capsys.readouterr().out


def test_bindings_override(run, tmp_path):
    run(bindings=[f"Data.directory = '{tmp_path}/elsewhere'"])
    assert (tmp_path / "elsewhere" / "manifest.json").is_file()


def test_an_error_of_the_user_is_one_line_and_no_traceback(gin_file, tmp_path):
    (tmp_path / "text").write_bytes(b"a\n\xff\n")
    done = subprocess.run(
        [sys.executable, "-m", "bidi.prepare", f"--gin_file={gin_file}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"bidi.prepare: {tmp_path}/text, line 2: not UTF-8" in done.stderr
    assert "Traceback" not in done.stderr
