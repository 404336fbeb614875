"""What the scripts beside the CMUdict experiments compute."""

import importlib.util
import json
import pathlib
import shutil
import subprocess

import pytest

from bidi.data.config import DataConfig
from bidi.data.prepare import prepare
from bidi.data.prepared import Prepared
from bidi.data.sources import ParallelText
from bidi.data.vocabulary import VocabularyConfig

FOLDER = pathlib.Path(__file__).parents[2] / "experiments" / "cmudict"


def load(script):
    spec = importlib.util.spec_from_file_location(pathlib.Path(script).stem, FOLDER / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_lexicon_is_what_was_prepared(tmp_path):
    words, phonemes = ["ab", "it's", "ab"], ["AE B", "IH T S", "EY B IY"]
    (tmp_path / "words").write_text("".join(f"{word}\n" for word in words))
    (tmp_path / "phonemes").write_text("".join(f"{text}\n" for text in phonemes))
    sides = [
        {"train": str(tmp_path / s), "validation": str(tmp_path / s)} for s in ("words", "phonemes")
    ]
    letters, whole = VocabularyConfig("char"), VocabularyConfig("word")
    prepare(DataConfig(str(tmp_path / "data"), ParallelText(*sides), letters, whole))
    lines = load("wfst/baseline.py").lexicon(Prepared.open(str(tmp_path / "data")))
    expected = [f"{word}\t{text}\n" for word, text in zip(words, phonemes, strict=True)]
    assert sorted(lines) == sorted(expected)


def test_pronunciations_go_to_their_words():
    """Whatever their order, and where a word has none."""
    written = "tank T AE NG K\nheda HH EY D AH\n"
    words = ["heda", "ws", "tank", "heda"]
    outputs = load("wfst/baseline.py").pronunciations(words, written)
    assert outputs == ["HH EY D AH", "", "T AE NG K", "HH EY D AH"]


@pytest.fixture
def run(tmp_path):
    """A run of 100 updates at 3 s each, but for a pause; validated thrice."""
    rows = []
    for step in (20, 40, 60, 80, 100):
        speed = 9000.0 if step == 40 else 3000.0
        rows.append({"step": step, "train/loss": 9.0, "train/milliseconds_per_update": speed})
        if step in (40, 80, 100):
            rows.append({"step": step, "validation/loss": {40: 2.0, 80: 1.0, 100: 0.8}[step]})
    workdir = tmp_path / "l2r"
    workdir.mkdir()
    (workdir / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return workdir


def test_the_curve_of_a_run(run):
    curves = load("curves.py")
    steps, minutes, losses = curves.curve(run)
    assert steps.tolist() == [40, 80, 100]
    assert minutes.tolist() == [2, 4, 5]
    assert losses.tolist() == [2.0, 1.0, 0.8]
    # At 90 updates, half way between the validations, 0.9.
    assert curves.last_change(steps, losses) == pytest.approx(-0.1)


def test_curves_are_drawn(run, tmp_path, capsys):
    load("curves.py").main(str(tmp_path / "curves.png"), [str(run), str(run)])
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    row = "| l2r | 100 | 5.0 | 0.8000 | -0.1000 |"
    assert capsys.readouterr().out.splitlines()[2:] == [row, row]


@pytest.fixture
def commands(tmp_path):
    """What `run.sh` calls python with, but for bidi.prepare, where nothing is installed or run."""
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "environment.sh").write_text(
        'install_bidi() { :; }\nend_at_interrupt() { :; }\npython() { echo "${@:2}"; }\n'
    )
    script = tmp_path / "experiments" / "cmudict" / "run.sh"
    script.parent.mkdir(parents=True)
    shutil.copy(FOLDER / "run.sh", script)

    def called(*names):
        printed = subprocess.run(
            ["bash", str(script), *names], check=True, capture_output=True, text=True
        ).stdout
        return [line for line in printed.splitlines() if not line.startswith("bidi.prepare")]

    return called


def test_a_name_says_how_it_is_trained_and_scored(commands):
    assert commands("l2r_75k_seed2") == [
        "bidi.train --gin_file=experiments/cmudict/l2r.gin --workdir=runs/cmudict/l2r_75k_seed2 "
        "--gin.Training.seed=2 --gin.STEPS=75000",
        "bidi.evaluate --workdir=runs/cmudict/l2r_75k_seed2 --split=validation",
        "bidi.evaluate --workdir=runs/cmudict/l2r_75k_seed2 --split=test",
    ]


def test_two_names_are_two_models_that_agree(commands):
    train, other, validation, test = commands("l2r_75k+r2l")
    assert train.endswith("--workdir=runs/cmudict/l2r_75k --gin.STEPS=75000")
    assert other.endswith("--workdir=runs/cmudict/r2l")
    for split, command in (("validation", validation), ("test", test)):
        assert command == (
            f"bidi.evaluate --workdir=runs/cmudict/l2r_75k --split={split} "
            "--partner_workdir=runs/cmudict/r2l"
        )


def test_labellers_are_trained_as_long_as_what_reads_them(commands):
    pseudo = commands("pseudo_30k")[0]
    assert pseudo.startswith("bidi.pseudo --gin_file=experiments/cmudict/pseudo.gin")
    assert "--gin.STEPS=30000 --gin.Pseudo.labeller_bindings=('STEPS = 30000',)" in pseudo
    assert pseudo.endswith("--gin.Partner.directory=data/cmudict-pseudo_30k")


@pytest.mark.parametrize(
    ("name", "scored", "leaks"), [("own_decoders", 4, 0), ("halves", 2, 1), ("gold", 6, 1)]
)
def test_a_system_is_scored_in_every_way_that_it_has(commands, name, scored, leaks):
    called = [line for line in commands(name) if line.startswith("bidi.evaluate")]
    assert len(set(called)) == len(called) == scored + leaks
    assert sum("--leak" in line for line in called) == leaks
    assert sum("--split=test" in line for line in called) == scored // 2
