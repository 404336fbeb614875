import json

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from bidi import compare, config
from bidi.data.prepared import Prepared
from bidi.errors import ConfigError, UserError
from bidi.evaluation import metrics, rouge
from bidi.evaluation.metrics import Errors
from bidi.evaluation.significance import paired_bootstrap


@pytest.fixture
def report(trained):
    """What `bidi.evaluate` writes, as far as it is read here; a real run's, of its test split."""
    return {"split": "test", "config": (trained.both / "config.gin").read_text()}


@pytest.fixture
def reports(trained, report, tmp_path):
    """A perfect report and one that is wrong throughout, in a directory that is no workdir."""
    targets = [example.targets[0] for example in Prepared.open(str(trained.data)).examples("test")]
    for name, outputs in (("good", targets), ("bad", [f"{text}x" for text in targets])):
        (tmp_path / f"{name}.json").write_text(json.dumps(report))
        (tmp_path / f"{name}.txt").write_text("".join(f"{text}\n" for text in outputs))
    return tmp_path


def run(a, b, *bindings, flag="--print_config=False"):
    config.define_flags()
    with flagsaver.flagsaver():
        flags.FLAGS(["compare", f"--a={a}", f"--b={b}", flag])
        compare.main(list(bindings))


def test_a_perfect_and_a_wrong_system(reports, capsys):
    run(reports / "good.json", reports / "bad.json")
    row = next(line for line in capsys.readouterr().out.splitlines() if "WER" in line)
    assert [cell.strip() for cell in row.split("│")[2:6]] == [
        "0.00",
        "100.00",
        "-100.00",
        "[-100.00, -100.00]",
    ]


def cells(printed, name):
    """The numbers of the table's row of that name."""
    row = next(line for line in printed.splitlines() if name in line)
    return [cell.strip() for cell in row.split("│")[2:5]]


def test_titles_are_compared_by_rouge_too(trained, reports, capsys):
    run(reports / "good.json", reports / "bad.json")
    assert "R-L" not in capsys.readouterr().out
    run(reports / "bad.json", reports / "good.json", "Evaluation.metric = 'rouge'")
    examples = Prepared.open(str(trained.data)).examples("test")
    bad = (reports / "bad.txt").read_text().splitlines()
    worse = rouge.rouge_l_errors(bad, [example.targets for example in examples], "words").percent
    assert 20 < worse < 80
    assert cells(capsys.readouterr().out, "100 - R-L") == [f"{worse:.2f}", "0.00", f"+{worse:.2f}"]


def test_translations_are_compared_by_bleu_too(trained, reports, capsys):
    run(reports / "good.json", reports / "bad.json")
    assert "BLEU" not in capsys.readouterr().out
    run(reports / "good.json", reports / "bad.json", "Evaluation.metric = 'bleu'")
    references = [example.targets for example in Prepared.open(str(trained.data)).examples("test")]
    bad = (reports / "bad.txt").read_text().splitlines()
    worse = metrics.bleu_chrf(bad, references)["bleu"]
    of_good, of_bad, difference = cells(capsys.readouterr().out, "BLEU")
    assert float(of_good) > float(of_bad)
    assert of_bad == f"{worse:.2f}"
    assert float(difference) == pytest.approx(float(of_good) - worse, abs=0.02)


def test_characters_are_compared_on_request(reports, capsys):
    lines = (reports / "good.txt").read_text().splitlines()
    unspaced = [line.replace(" ", "") for line in lines]
    (reports / "bad.txt").write_text("".join(f"{line}\n" for line in unspaced))
    run(reports / "bad.json", reports / "good.json")
    assert cells(capsys.readouterr().out, "WER")[0] == "77.78"
    letters = ["Evaluation.tokens = 'characters'", "Evaluation.metric = 'rouge'"]
    run(reports / "bad.json", reports / "good.json", *letters)
    printed = capsys.readouterr().out
    for name in ("inexact", "CER", "100 - R-L"):
        assert cells(printed, name) == ["0.00", "0.00", "+0.00"]


# Of the examples, by A and by B.
WRONG = [0, 1, 2], [2, 3]


def test_where_both_are_wrong(reports, capsys):
    run(reports / "good.json", reports / "bad.json")
    assert "Wrong in both 0.00 %, only in A 0.00 %, only in B 100.00 %; correlation nan" in (
        capsys.readouterr().out
    )
    lines = (reports / "good.txt").read_text().splitlines()
    for name, wrong in zip(("good", "bad"), WRONG, strict=True):
        texts = [f"{text}x" if n in wrong else text for n, text in enumerate(lines)]
        (reports / f"{name}.txt").write_text("".join(f"{text}\n" for text in texts))
    run(reports / "good.json", reports / "bad.json")
    # 1, 2, 1 and 5 of nine: (1 * 5 - 2 * 1) / sqrt(3 * 6 * 2 * 7)
    printed = capsys.readouterr().out
    assert "both 11.11 %, only in A 22.22 %, only in B 11.11 %; correlation 0.189" in printed
    of_good, of_bad = (Errors(np.isin(np.arange(9), wrong) * 1, np.ones(9, int)) for wrong in WRONG)
    found = paired_bootstrap(of_good, of_bad, seed=0)
    row = next(line for line in printed.splitlines() if "WER" in line).split("│")
    assert [cell.strip() for cell in row[5:7]] == [
        f"[{found['low']:+.2f}, {found['high']:+.2f}]",
        f"{found['p']:.4f}",
    ]


def test_the_other_report_may_be_of_another_program(report, reports, capsys):
    """It has no config of ours: the data are those of the first."""
    other = {name: value for name, value in report.items() if name != "config"}
    (reports / "bad.json").write_text(json.dumps(other))
    run(reports / "good.json", reports / "bad.json")
    assert "correlation" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"bad\.json is no report of bidi\.evaluate"):
        run(reports / "bad.json", reports / "good.json")


def test_reports_that_cannot_be_compared(report, reports):
    (reports / "bad.json").write_text(json.dumps(report | {"split": "validation"}))
    with pytest.raises(UserError, match="not the same examples"):
        run(reports / "good.json", reports / "bad.json")
    (reports / "bad.json").write_text(json.dumps(report))
    (reports / "bad.txt").write_text("one line\n")
    with pytest.raises(UserError, match="1, the split"):
        run(reports / "good.json", reports / "bad.json")
    for content in ("{", "{}", "[]", '{"split": "test", "config": 5}'):
        (reports / "other.json").write_text(content)
        with pytest.raises(UserError, match=r"other\.json is no report of bidi\.evaluate"):
            run(reports / "other.json", reports / "bad.json")
    with pytest.raises(UserError, match="is a directory: name a report, WORKDIR"):
        run(reports, reports / "bad.json")
    (reports / "bad.txt").unlink()
    with pytest.raises(UserError, match=r"bad\.txt is missing"):
        run(reports / "good.json", reports / "bad.json")


def test_reports_of_other_examples_are_not_compared(trained, report, reports):
    digest = Prepared.open(str(trained.data)).digest("test")

    def write(name, digest):
        (reports / f"{name}.json").write_text(json.dumps(report | {"examples_sha256": digest}))

    write("good", digest)
    run(reports / "good.json", reports / "bad.json")  # which says nothing of them
    write("bad", digest)
    run(reports / "good.json", reports / "bad.json")
    for name in ("good", "bad"):
        write(name, "another")
        with pytest.raises(UserError, match=rf"not the same(?s:.*)/{name}\.json: another"):
            run(reports / "good.json", reports / "bad.json")
        write(name, digest)


def test_a_line_ends_where_it_ends(trained, reports, capsys):
    lines = (reports / "good.txt").read_text().splitlines()
    lines[0] += "\u2028\x0b\x85"
    (reports / "bad.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    run(reports / "good.json", reports / "bad.json")
    assert cells(capsys.readouterr().out, "WER")[:2] == ["0.00", "0.00"]


def test_flags_of_all_verbs(reports, capsys):
    pair = (reports / "good.json", reports / "bad.json")
    with pytest.raises(SystemExit):
        run(*pair, "Search.beam_size = 6", flag="--print_config")
    assert "Search.beam_size = 6" in capsys.readouterr().out
    with pytest.raises(UserError, match="--gin_file is not for this verb"):
        run(*pair, flag="--gin_file=any.gin")


def test_a_config_that_is_out_of_date_is_said(report, reports):
    report["config"] += "\nSearch.gone = 3\n"
    (reports / "good.json").write_text(json.dumps(report))
    with pytest.raises(
        ConfigError, match=r"the config in .*good\.json:\d+: Search has no parameter 'gone'"
    ):
        run(reports / "good.json", reports / "bad.json")
