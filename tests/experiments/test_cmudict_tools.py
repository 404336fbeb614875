"""What the scripts beside the CMUdict experiments compute."""

import importlib.util
import json
import pathlib

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
