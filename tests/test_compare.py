import json

import pytest
from absl import flags
from absl.testing import flagsaver

from bidi import compare, config, verb
from bidi.data.prepared import Prepared


@pytest.fixture
def reports(trained):
    """A perfect report and one that is wrong throughout, of a real run's test split."""
    directory = trained.both / "eval"
    directory.mkdir(exist_ok=True)
    targets = [example.targets[0] for example in Prepared.open(str(trained.data)).examples("test")]
    for name, outputs in (("good", targets), ("bad", [f"{text}x" for text in targets])):
        (directory / f"{name}.json").write_text(json.dumps({"split": "test"}))
        (directory / f"{name}.txt").write_text("".join(f"{text}\n" for text in outputs))
    yield directory
    for path in directory.glob("*o*d.*"):
        path.unlink()


def run(a, b):
    config.define_flags()
    with flagsaver.flagsaver():
        flags.FLAGS(["compare", f"--a={a}", f"--b={b}"])
        compare.main([])


def test_a_perfect_and_a_wrong_system(reports, capsys):
    run(reports / "good.json", reports / "bad.json")
    row = next(line for line in capsys.readouterr().out.splitlines() if "WER" in line)
    assert [cell.strip() for cell in row.split("│")[2:6]] == [
        "0.00",
        "100.00",
        "-100.00",
        "[-100.00, -100.00]",
    ]


def test_where_both_are_wrong(reports, capsys):
    run(reports / "good.json", reports / "bad.json")
    assert "Wrong in both 0.00 %, only in A 0.00 %, only in B 100.00 %; correlation nan" in (
        capsys.readouterr().out
    )
    lines = (reports / "good.txt").read_text().splitlines()
    for name, wrong in (("good", {0, 1, 2}), ("bad", {2, 3})):
        texts = [f"{text}x" if n in wrong else text for n, text in enumerate(lines)]
        (reports / f"{name}.txt").write_text("".join(f"{text}\n" for text in texts))
    run(reports / "good.json", reports / "bad.json")
    # 1, 2, 1 and 5 of nine: (1 * 5 - 2 * 1) / sqrt(3 * 6 * 2 * 7)
    assert "both 11.11 %, only in A 22.22 %, only in B 11.11 %; correlation 0.189" in (
        capsys.readouterr().out
    )


def test_reports_that_cannot_be_compared(reports):
    (reports / "bad.json").write_text(json.dumps({"split": "validation"}))
    with pytest.raises(verb.UserError, match="not the same examples"):
        run(reports / "good.json", reports / "bad.json")
    (reports / "bad.json").write_text(json.dumps({"split": "test"}))
    (reports / "bad.txt").write_text("one line\n")
    with pytest.raises(verb.UserError, match="1, the split"):
        run(reports / "good.json", reports / "bad.json")
