"""The verb on a tiny experiment; what its parts do is shown in tests/benchmarking."""

import itertools
import json
import shutil
import subprocess
import sys

import pytest
from absl import flags
from absl.testing import flagsaver

from bidi import benchmark, config, verb
from bidi.benchmarking import searches, updates
from tests.benchmarking.test_searches import taken
from tests.trained_run import HALVES, STEPS

SPREAD = {"median", "least", "most"}


def strict(text):
    """JSON, and no NaN in it."""

    def refuse(constant):
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)


def call(measurement, *arguments, bindings=()):
    config.define_flags()
    with flagsaver.flagsaver():
        flags.FLAGS(["bidi.benchmark", *arguments])
        measurement(list(bindings))


def spreads(tree):
    """Everything that was measured in several rounds."""
    if isinstance(tree, dict) and tree.keys() == SPREAD:
        yield tree
    elif isinstance(tree, dict | list):
        for inner in tree.values() if isinstance(tree, dict) else tree:
            yield from spreads(inner)


def test_train(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(updates.SQUARE, "cpu", 32)
    output = tmp_path / "train.json"
    call(
        benchmark.train,
        f"--gin_file={trained.gin_file}",
        "--rounds=2",
        "--updates=2",
        f"--output={output}",
        bindings=["Transformer.interaction = 'layers'", "Partner.kind = 'predicted'"],
    )
    report = strict(output.read_text())
    assert (report["rounds"], report["updates"]) == (2, 2)
    assert "Transformer.interaction = 'layers'" in report["config"]
    assert report["provenance"].keys() >= {"commit", "versions", "device", "python"}

    alone, both = report["systems"]["L2R alone"], report["systems"]["both"]
    assert alone["tokens_per_second_by_direction"].keys() == {"l2r"}
    assert both["tokens_per_second_by_direction"].keys() == {"l2r", "r2l"}
    assert alone["padding"] == both["padding"]
    assert report["bound"] == both["flops_per_update"] / alone["flops_per_update"]
    assert 2.2 < report["bound"] < 3  # two directions, and each once more as a partner
    times = [one["milliseconds_per_update"] for one in (alone, both)]
    assert times[1]["least"] / times[0]["most"] <= report["ratio"]["median"]
    assert times[1]["most"] / times[0]["least"] >= report["ratio"]["median"]
    assert report["percent_over_bound"] == pytest.approx(
        100 * (report["ratio"]["median"] / report["bound"] - 1)
    )
    # Eight rows of eight steps, two ways, on eight devices.
    assert report["products"].keys() == {"16 x 16 x 16", "32 x 32 x 32"}
    assert both["share_of_product"].keys() == report["products"].keys()
    assert both["share_of_peak"] is None
    assert both["program_memory"]["temporary"] > 0
    assert all(0 <= one["least"] <= one["median"] <= one["most"] for one in spreads(report))
    printed = capsys.readouterr().out
    assert "ms/update" in printed
    assert f"bound by operations {report['bound']:.3f}" in printed


def test_loss(trained, tmp_path, capsys):
    output = tmp_path / "loss.json"
    call(
        benchmark.loss,
        f"--gin_file={trained.gin_file}",
        "--rounds=2",
        f"--output={output}",
        # No data are needed.
        bindings=["words/Vocabulary.size = 900", "Data.directory = 'none'"],
    )
    report = strict(output.read_text())
    assert report["shape"] == [1, 2, 8, 16, 900]  # of eight devices
    chunked, whole = (report["forms"][name] for name in ("in chunks", "whole logits"))
    assert chunked["memory"]["arguments"] == whole["memory"]["arguments"]
    assert whole["memory"]["temporary"] >= 16 * 900 * 4
    assert all(0 < one["least"] <= one["median"] <= one["most"] for one in spreads(report))
    assert "on one device: 16 tokens of size 16" in capsys.readouterr().out


def test_search(trained, tmp_path, capsys):
    output = tmp_path / "search.json"
    call(
        benchmark.search,
        f"--workdir={trained.both}",
        f"--l2r_workdir={trained.l2r}",
        "--rounds=2",
        "--sentences=9",
        "--beams=2",
        "--batch_tokens=64",
        "--profile",
        f"--output={output}",
        bindings=["Search.alpha = 0.3", "Transformer.dropout = 0.25"],
    )
    report = strict(output.read_text())
    assert (report["rounds"], report["sentences"]) == (2, 9)
    assert "Search.alpha = 0.3" in report["config"]
    configs = {name: model.pop("config") for name, model in report["models"].items()}
    assert report["models"] == {
        "model": {"workdir": str(trained.both), "checkpoint": str(STEPS)},
        "L2R": {"workdir": str(trained.l2r), "checkpoint": str(STEPS)},
    }
    for name, ways in (("model", "both"), ("L2R", "l2r")):
        assert f"Streams.ways = '{ways}'" in configs[name]
        assert "Transformer.dropout = 0.25" in configs[name]
    names = ["L2R, none, beam 2", "model, none, beam 2"]
    assert [row["name"] for row in report["rows"]] == names
    for row in report["rows"]:
        assert row["batches"].keys() == {"one", "64"}
        for at in row["batches"].values():
            assert 0 < at["row_steps_needed"] <= at["row_steps_run"]
            assert at["compile_seconds"] > 0
            assert at["ratio_to_l2r"].keys() == SPREAD
        assert row["best"] == "64"
    assert report["rows"][0]["ratio_to_l2r_at_best"] == 1
    assert report["shares"].keys() == set(names)
    for shares in itertools.chain(*(by_batch.values() for by_batch in report["shares"].values())):
        assert sum(shares.values()) == pytest.approx(1)
        assert min(shares[part] for part in ("attention", "feed-forward", "encoder", "top-k")) > 0
    assert all(0 < one["least"] <= one["median"] <= one["most"] for one in spreads(report))
    printed = capsys.readouterr().out
    assert "one sentence at a time" in printed
    assert "% of the devices' time, model, none, beam 2, batch: encoder" in printed


@pytest.mark.usefixtures("restore_once")
def test_every_size_of_batch_is_measured(trained, tmp_path, monkeypatch):
    """No search is run for it: those of one size are above."""
    asked = []

    def at_batch(models, rows, sources, size, *_):
        asked.append(size)
        return {row: taken(10.0 / (size or 1)) for row in rows}

    monkeypatch.setattr(searches, "_at_batch", at_batch)
    output = tmp_path / "search.json"
    arguments = [f"--workdir={trained.both}", "--beams=2", "--batch_tokens=64,256,128"]
    call(benchmark.search, *arguments, f"--output={output}")
    assert asked == [None, 64, 256, 128]
    (row,) = strict(output.read_text())["rows"]
    assert list(row["batches"]) == ["one", "64", "256", "128"]
    assert row["best"] == "256"


# What `verb.run` says in one line.
EXPECTED_ERRORS = verb.USER_ERRORS


def test_what_cannot_be_measured_is_named(trained, tmp_path):
    other = shutil.copytree(trained.l2r, tmp_path / "other")
    data = (other / "data.json").read_text()
    (other / "data.json").write_text(data.replace('"sha256": "', '"sha256": "0'))
    for measurement, arguments, bindings, says in (
        (benchmark.train, [], [], "--gin_file is missing"),
        (
            benchmark.train,
            [f"--gin_file={trained.gin_file}"],
            ["Streams.ways = 'l2r'"],
            "name an experiment of both directions",
        ),
        (
            benchmark.train,
            [f"--gin_file={trained.gin_file}"],
            HALVES,
            "compare the ms/update of two trainings",
        ),
        (
            benchmark.train,
            [f"--gin_file={trained.gin_file}"],
            ["Data.directory = 'none'"],
            "holds no prepared data",
        ),
        (benchmark.train, ["--output=none/a.json"], [], "--output=none/a.json: there is no such"),
        (benchmark.search, ["--output=none/a.json"], [], "--output=none/a.json: there is no such"),
        (benchmark.search, [], [], "--workdir is missing"),
        (
            benchmark.search,
            [f"--workdir={trained.both}", f"--l2r_workdir={trained.both}"],
            [],
            "has Streams.ways = 'both': name a run of 'l2r'",
        ),
        (
            benchmark.train,
            [f"--gin_file={trained.gin_file}", f"--workdir={trained.both}"],
            [],
            "--workdir is not for this",
        ),
        (
            benchmark.search,
            [f"--workdir={trained.both}", f"--l2r_workdir={other}"],
            [],
            "has other vocabularies than",
        ),
        (
            benchmark.search,
            [f"--workdir={trained.l2r}", f"--partner_workdir={trained.r2l}"],
            [],
            "--partner_workdir is not for this verb",
        ),
        (
            benchmark.article,
            [f"--workdir={trained.both}"],
            [],
            "the article's search is that of a model with Experiment.model = @Recurrent()",
        ),
        (benchmark.search, [f"--workdir={trained.both}", "--beams=1,x"], [], "--beams=1,x: write"),
        (
            benchmark.search,
            [f"--workdir={trained.both}", "--batch_tokens=0"],
            [],
            "--batch_tokens=0: write numbers",
        ),
    ):
        with pytest.raises(EXPECTED_ERRORS) as caught:
            call(measurement, *arguments, bindings=bindings)
        assert says in str(caught.value)


@pytest.mark.parametrize("measurement", [benchmark.train, benchmark.search])
def test_print_config_measures_nothing(trained, capsys, measurement):
    source = "gin_file" if measurement is benchmark.train else "workdir"
    place = trained.gin_file if source == "gin_file" else trained.both
    with pytest.raises(SystemExit):
        call(
            measurement, f"--{source}={place}", "--print_config", bindings=["Search.beam_size = 6"]
        )
    printed = capsys.readouterr().out
    assert "Search.beam_size = 6" in printed
    assert "ms/update" not in printed


def test_a_real_call_says_what_to_say():
    done = subprocess.run(
        [sys.executable, "-m", "bidi.benchmark"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "bidi.benchmark: say first what to measure, train, loss, search, article;" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    done = subprocess.run(
        [sys.executable, "-m", "bidi.benchmark", "search"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "bidi.benchmark search: --workdir is missing" in done.stderr
