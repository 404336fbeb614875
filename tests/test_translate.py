"""The verb on a tiny trained model; what its parts do is shown in tests/evaluation."""

import gzip
import io
import json
import os
import shutil
import subprocess
import sys

import pytest
from absl import flags
from absl.testing import flagsaver

from bidi import config, experiment, verb
from bidi import translate as translate_verb
from bidi.errors import DataError, UserError
from bidi.evaluation import restore
from tests import xla_flags

SOURCES = ["abc", "", "edcba", "   ", "bb", "ea", "abcdeabcde", "\u3000", "cab", "de"]
EMPTY = [1, 3, 7]  # of them


@pytest.fixture
def translate(trained, restore_once, monkeypatch, capsys):
    """Runs the verb in this process: what it writes, line by line."""

    def call(*arguments, stdin=b"", bindings=(), workdir=None):
        config.define_flags()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), "ascii"))
        with flagsaver.flagsaver():
            workdir = workdir or trained.both
            flags.FLAGS(["bidi.translate", f"--workdir={workdir}", *arguments])
            translate_verb.main(list(bindings))
        written = capsys.readouterr().out
        assert written.endswith("\n") or not written
        return written.split("\n")[:-1]

    return call


def encode(lines):
    return "".join(f"{line}\n" for line in lines).encode()


@pytest.fixture
def system(trained, restore_once):
    """What the verb makes use of."""
    return restore.load_system(
        str(trained.both), experiment.load_run(str(trained.both), []), "best", None
    )


@pytest.fixture
def texts(system):
    """The output of each of `SOURCES`, each searched alone."""
    found = [system.find([source]) for source in SOURCES]
    return [system.generators[0].text(one.winner) for (one,) in found]


def test_order_and_empty_lines_are_kept(translate, texts):
    assert translate(stdin=encode(SOURCES)) == texts
    assert [place for place, text in enumerate(texts) if not text] == EMPTY
    assert len(set(texts)) > 4
    order = [9, 2, 1, 8, 4, 4, 3, 0]
    shuffled = translate(stdin=encode(SOURCES[place] for place in order))
    assert shuffled == [texts[place] for place in order]


@pytest.mark.parametrize("chunk", [1, 3, len(SOURCES)])
def test_more_lines_than_a_chunk(translate, texts, chunk, monkeypatch):
    monkeypatch.setattr(translate_verb, "_CHUNK", chunk)
    assert translate(stdin=encode(SOURCES)) == texts


def test_a_chunk_is_written_before_the_next_is_read(trained, translate, monkeypatch, capsys):
    written = []

    def lines():
        yield from ("abc", "ea")
        written.append(capsys.readouterr().out)
        yield "bb"

    monkeypatch.setattr(translate_verb, "_CHUNK", 2)
    monkeypatch.setattr(translate_verb, "_read_lines", lines)
    assert len(translate()) == 1
    assert written[0].count("\n") == 2


def test_lines_end_at_newlines_alone(translate, texts):
    """Not at U+2028, nor at a carriage return within; that before a newline belongs to it."""
    assert translate(stdin=b"") == []
    assert translate(stdin=b"\n") == [""]
    assert translate(stdin=b"abc\r\nedcba") == [texts[0], texts[2]]
    assert len(translate(stdin="ab\u2028cd\nab\rcd\nab\x0ccd\n".encode())) == 3


def test_files_in_and_out(translate, texts, tmp_path):
    plain, packed, output = tmp_path / "in", tmp_path / "in.gz", tmp_path / "out"
    plain.write_bytes(encode(SOURCES))
    packed.write_bytes(gzip.compress(encode(SOURCES)))
    for path in (plain, packed):
        assert translate(f"--input={path}") == texts
    output.write_text("old\n" * 100)
    assert translate(f"--input={plain}", f"--output={output}") == []
    assert output.read_text() == "".join(f"{text}\n" for text in texts)
    assert translate(f"--input={plain}", f"--output={plain}") == []
    assert plain.read_bytes() == output.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"in", "in.gz", "out"}


def test_bad_input_names_file_and_line_and_destroys_nothing(translate, tmp_path, monkeypatch):
    monkeypatch.setattr(translate_verb, "_CHUNK", 1)
    source, output = tmp_path / "in", tmp_path / "out"
    source.write_bytes(b"abc\nea\n\xff\nbb\n")
    output.write_text("old\n")
    with pytest.raises(DataError, match=f"{source}, line 3: not UTF-8"):
        translate(f"--input={source}", f"--output={output}")
    assert output.read_text() == "old\n"
    with pytest.raises(DataError, match="stdin, line 3: not UTF-8"):
        translate(f"--output={output}", stdin=source.read_bytes())
    assert output.read_text() == "old\n"
    (tmp_path / "in.gz").write_bytes(gzip.compress(b"abc\n" * 9)[:-9])
    with pytest.raises(DataError, match=r"in\.gz, after line \d: not sound gzip"):
        translate(f"--input={tmp_path}/in.gz", f"--output={output}")
    assert output.read_text() == "old\n"
    assert issubclass(DataError, verb.USER_ERRORS)


@pytest.mark.parametrize("chunk", [1, 2, 9])
def test_lines_before_a_bad_one_are_translated(translate, texts, chunk, monkeypatch, capsys):
    monkeypatch.setattr(translate_verb, "_CHUNK", chunk)
    with pytest.raises(DataError, match="stdin, line 3: not UTF-8"):
        translate(stdin=encode(SOURCES[:2]) + b"\xff\nbb\n")
    assert capsys.readouterr().out.splitlines() == texts[:2]


@pytest.mark.parametrize(
    ("output", "says"), [("none/out", "there is no such directory"), ("out.gz", r"leave out \.gz")]
)
def test_what_cannot_be_written_is_said_before_the_search(translate, tmp_path, output, says):
    with pytest.raises(UserError, match=f"--output={tmp_path}/{output}: .*{says}"):
        translate(f"--output={tmp_path}/{output}", stdin=b"abc\n")
    assert not list(tmp_path.iterdir())


def test_outputs_never_replace_what_is_no_file(translate, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path):
        with pytest.raises(UserError, match=f"--output={path} is no file"):
            translate(f"--output={path}", stdin=b"abc\n")
    assert pipe.is_fifo()


@pytest.mark.parametrize("n_best", [2, 4, 6])
def test_n_best_gives_so_many_lines_a_source(translate, texts, n_best):
    lines = translate(f"--n_best={n_best}", stdin=encode(SOURCES))
    assert len(lines) == n_best * len(SOURCES)
    lots = [lines[start : start + n_best] for start in range(0, len(lines), n_best)]
    assert [lot[0] for lot in lots] == texts
    for place, lot in enumerate(lots):
        given = [line for line in lot if line]
        assert lot == given + [""] * (n_best - len(given))
        assert len(set(given)) == len(given)
        if place in EMPTY:
            assert not given
        else:  # four of each direction, half of which the other may have too
            assert len(given) >= min(n_best, 4)


def test_scores_are_in_order(translate, texts):
    lines = translate("--n_best=4", "--scores", stdin=encode(SOURCES))
    plain = translate("--n_best=4", stdin=encode(SOURCES))
    assert [line.partition("\t")[2] for line in lines] == plain
    for start in range(0, len(lines), 4):
        scores = [float(line.partition("\t")[0]) for line in lines[start : start + 4] if line]
        assert scores == sorted(scores, reverse=True)
        assert all(score < 0 for score in scores)
    single = translate("--scores", stdin=encode(SOURCES))
    assert single == lines[::4]


def test_more_than_the_search_keeps_is_refused(translate):
    with pytest.raises(UserError, match=r"--n_best=9, but .* 4 hypotheses of each of 2"):
        translate("--n_best=9", stdin=b"abc\n")


def test_more_than_agreement_chooses_among_is_refused(translate, trained, agreement):
    with pytest.raises(
        UserError, match=r"--n_best=9, but agreement chooses among 8 outputs: raise"
    ):
        translate(
            *["--n_best=9"],
            stdin=b"abc\n",
            workdir=agreement(trained.both, None),
            bindings=["Agreement.rescore = True"],
        )


def test_json_says_what_each_direction_wrote(translate, system, texts):
    records = list(map(json.loads, translate("--json", "--n_best=3", stdin=encode(SOURCES))))
    assert [record["source"] for record in records] == SOURCES
    assert [record["output"] for record in records] == texts
    for place, record in enumerate(records):
        assert record.keys() == {"source", "output", "won", "directions"}
        assert record["directions"].keys() == {"l2r", "r2l"}
        if place in EMPTY:
            assert record["won"] is None
            assert record["directions"] == {"l2r": [], "r2l": []}
            continue
        (found,) = system.find([record["source"]])
        assert record["won"] == found.winner.direction
        assert record["directions"][record["won"]][0]["text"] == record["output"]
        for direction, listed in record["directions"].items():
            assert len(listed) == 3
            for one in listed:
                assert one.keys() == {"text", "tokens", "score", "log_prob", "finished"}
                assert "".join(one["tokens"]).replace("▁", " ").strip() == one["text"]
                assert one["log_prob"] <= one["score"] < 0
            best = found.n_best[direction][0]
            assert listed[0]["score"] == pytest.approx(best.score, rel=1e-4)
            assert listed[0]["finished"] == best.finished


def test_json_is_one_line_of_text_as_it_is(translate):
    (line,) = translate("--json", stdin='naïve "\\"\t—'.encode())
    assert "naïve" in line
    assert json.loads(line)["source"] == 'naïve "\\"\t—'


def test_what_was_cut_is_said(translate, caplog, monkeypatch):
    monkeypatch.setattr(translate_verb, "_CHUNK", 2)
    caplog.set_level("WARNING", logger="bidi")
    translate(stdin=encode(["abc", "abcdabc"]))
    assert "longer" not in caplog.text
    translate(stdin=encode(["abcdabcd", "abc", "ea", "abcdeabcdeabcde"]))
    assert "2 sources were longer than the model reads, and cut" in caplog.text


@pytest.fixture
def agreement(trained, tmp_path):
    """A copy of the run that has chosen how its directions agree; and as two models."""
    choice = {"weight": 0.5, "alpha": 1.0}

    def save(workdir, partner):
        copy = shutil.copytree(workdir, tmp_path / workdir.name)
        bindings = [] if partner else ["Agreement.rescore = True"]
        loaded = experiment.load_run(str(copy), bindings)
        system = restore.load_system(str(copy), loaded, "best", partner and str(partner))
        (copy / "eval").mkdir(exist_ok=True)
        kept = json.dumps([{**system._key(), **choice}])
        (copy / "eval" / "agreement_choices.json").write_text(kept)
        return copy

    return save


def test_agreement_chooses_as_tuned(trained, translate, agreement, texts):
    rescore = ["Agreement.rescore = True"]
    one, two = agreement(trained.both, None), agreement(trained.l2r, trained.r2l)
    partner = f"--partner_workdir={trained.r2l}"
    for arguments in ([], ["--scores"], ["--n_best=3"]):
        by_one = translate(*arguments, stdin=encode(SOURCES), workdir=one, bindings=rescore)
        by_two = translate(*arguments, partner, stdin=encode(SOURCES), workdir=two)
        assert by_one == by_two
        assert len(by_one) == len(SOURCES) * (3 if arguments == ["--n_best=3"] else 1)
    both = translate("--scores", "--n_best=3", stdin=encode(SOURCES), workdir=one, bindings=rescore)
    for start in range(0, len(both), 3):
        scores = [float(line.partition("\t")[0]) for line in both[start : start + 3] if line]
        assert scores == sorted(scores, reverse=True)
    assert by_one[::3] != texts
    assert by_one[::3] == translate(stdin=encode(SOURCES), workdir=one, bindings=rescore)
    records = translate(partner, "--json", stdin=encode(SOURCES), workdir=two)
    records = [json.loads(record) for record in records]
    assert [record["output"] for record in records] == by_one[::3]
    assert records[0]["directions"].keys() == {"l2r", "r2l"}
    listed = [
        [f"{one['score']:.4f}\t{one['text']}" for one in record["ranked"][:3]] for record in records
    ]
    assert [line for lines in listed for line in lines] == [line for line in both if line]


def test_agreement_must_have_been_tuned(trained, translate, agreement):
    workdir = agreement(trained.both, None)
    for bindings in (["Agreement.n_best = 3"], ["Search.alpha = 0.1"]):
        with pytest.raises(UserError, match=r"run bidi\.evaluate with the same flags first"):
            translate(
                stdin=b"abc\n", workdir=workdir, bindings=["Agreement.rescore = True", *bindings]
            )


def test_two_models_must_have_been_tuned(trained, translate, tmp_path):
    tuned = shutil.ignore_patterns("eval")
    workdir = shutil.copytree(trained.l2r, tmp_path / "l2r", ignore=tuned)
    with pytest.raises(UserError, match="with the same flags first, or pass one model"):
        translate(f"--partner_workdir={trained.r2l}", stdin=b"abc\n", workdir=workdir)


def test_what_is_missing_is_named(trained, translate, tmp_path):
    for arguments, says in (
        (["--workdir="], "--workdir is missing"),
        ([f"--workdir={tmp_path}"], "holds no config.gin"),
        (["--checkpoint=7"], "no checkpoint '7'"),
        ([f"--input={tmp_path}/none"], f"{tmp_path}/none"),
        ([f"--output={tmp_path}/none/out"], f"{tmp_path}/none/out"),
        ([f"--partner_workdir={trained.data}"], f"{trained.data} is no workdir"),
    ):
        with pytest.raises(verb.USER_ERRORS) as caught:
            translate(*arguments, stdin=b"abc\n")
        assert says in str(caught.value)


def test_print_config_writes_nothing_else(translate, capsys):
    with pytest.raises(SystemExit):
        translate("--print_config", stdin=b"abc\n", bindings=["Search.beam_size = 6"])
    printed = capsys.readouterr().out.splitlines()
    assert any(line.startswith("Search.beam_size = 6 ") for line in printed)
    assert all("#" in line for line in printed)


def test_a_real_call_reads_stdin_and_writes_stdout(trained, texts, tmp_path):
    """Outputs alone: the log goes elsewhere. In a locale that knows no UTF-8, too."""
    command = [sys.executable, "-m", "bidi.translate", f"--workdir={trained.both}", "--json"]
    done = subprocess.run(
        command,
        input=encode(SOURCES),
        capture_output=True,
        cwd=tmp_path,
        env=os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    records = [json.loads(line) for line in done.stdout.decode().splitlines()]
    assert [record["output"] for record in records] == texts
    assert [record["source"] for record in records] == SOURCES
    assert b"1 sources were longer" in done.stderr


def test_streams_that_are_closed_are_named(translate, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        with pytest.raises(UserError, match="stdout is closed: name a file by --output"):
            translate(stdin=b"abc\n")


def test_who_reads_the_outputs_may_stop(trained):
    command = [sys.executable, "-m", "bidi.translate", f"--workdir={trained.both}"]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"XLA_FLAGS": xla_flags.QUICK},
    ) as process:
        process.stdout.close()
        process.stdin.write(b"abc\n")
        process.stdin.close()
        said = process.stderr.read().decode()
    assert process.returncode == 1
    assert "Error" not in said
    assert "Traceback" not in said
