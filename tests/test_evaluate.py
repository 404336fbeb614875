"""The verb on a tiny trained model; what its parts do is shown in tests/evaluation."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import types

import pytest
from absl import flags
from absl.testing import flagsaver

from bidi import config, experiment, verb
from bidi import evaluate as evaluate_verb
from bidi.data.prepared import Prepared
from bidi.evaluation.config import AgreementConfig
from bidi.search.config import SearchConfig
from bidi.training import loop
from tests import xla_flags
from tests.trained_run import HALVES, STEPS, TEST_SOURCES


def strict(text):
    """JSON, and no NaN in it."""

    def refuse(constant):
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)


@pytest.fixture
def evaluate(restore_once):
    """Runs the verb in this process: its JSON, and its outputs line by line."""

    def call(workdir, *arguments, name="none-beam4", split="test", bindings=()):
        config.define_flags()
        with flagsaver.flagsaver():
            flags.FLAGS(["bidi.evaluate", f"--workdir={workdir}", f"--split={split}", *arguments])
            evaluate_verb.main(list(bindings))
        path = workdir / "eval" / f"{split}-{name}.json"
        return strict(path.read_text()), path.with_suffix(".txt").read_text().splitlines()

    return call


@pytest.fixture
def workdir(trained, tmp_path):
    """A copy of the run of both directions, for what a test writes there."""
    ignore = shutil.ignore_patterns("eval")
    return shutil.copytree(trained.both, tmp_path / "run", ignore=ignore)


@pytest.fixture(scope="module")
def evaluated(trained):
    """`trained.both` evaluated by a real call, on one device."""
    command = [sys.executable, "-m", "bidi.evaluate", f"--workdir={trained.both}"]
    environment = os.environ | {"XLA_FLAGS": xla_flags.QUICK}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def without(result, *keys):
    return {key: value for key, value in result.items() if key not in keys}


def rounded(tree):
    """To what cannot depend on how many rows were searched at once."""
    if isinstance(tree, dict):
        return {key: rounded(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [rounded(value) for value in tree]
    return round(tree, 4) if isinstance(tree, float) else tree


def test_a_real_call_and_eight_devices_give_the_same(evaluated, trained, evaluate):
    assert evaluated.returncode == 0, evaluated.stderr
    saved = trained.both / "eval" / "test-none-beam4.json"
    assert evaluated.stdout.splitlines()[-1].endswith(str(saved))
    assert "Traceback" not in evaluated.stderr
    one = strict(saved.read_text())
    outputs = saved.with_suffix(".txt").read_text().splitlines()
    eight, same_outputs = evaluate(trained.both)
    assert one["provenance"]["device"]["count"] == 1
    assert eight["provenance"]["device"]["count"] == 8
    assert outputs == same_outputs
    differing = ("speed", "provenance")
    assert rounded(without(one, *differing)) == rounded(without(eight, *differing))


def test_halves_are_trained_and_searched(trained, evaluate, tmp_path):
    workdir = tmp_path / "halves"
    bindings = [*HALVES, "Training.steps = 3", "Batches.target_length = 5"]
    loaded = experiment.load([trained.gin_file], bindings)
    assert loop.train(loaded, workdir).finished
    result, outputs = evaluate(workdir, name="joint-beam4")
    assert result["directions"].keys() == result["won"].keys() == {"joint"}
    assert result["metrics"] == result["directions"]["joint"]
    assert [sample["joint"] for sample in result["samples"]] == outputs[: len(result["samples"])]

    # Beside a partner that is searched by a coupling of its own.
    both = shutil.copytree(trained.both, tmp_path / "both", ignore=shutil.ignore_patterns("eval"))
    result, _ = evaluate(workdir, f"--partner_workdir={both}", name="joint-beam4-partner-both")
    assert result["directions"].keys() == {"joint", "l2r", "r2l"}


def test_the_results_say_everything(trained, evaluate, capsys):
    result, outputs = evaluate(trained.both)
    assert len(outputs) == len(TEST_SOURCES) == result["sentences"]
    assert outputs[TEST_SOURCES.index("")] == ""
    assert sum(map(bool, outputs)) == len(TEST_SOURCES) - 1

    metrics = {"wer", "per", "exact_match", "bleu", "chrf", "length_ratio", "positional_accuracy"}
    assert metrics < result["metrics"].keys()
    assert result["directions"].keys() == {"l2r", "r2l"}
    for scores in result["directions"].values():
        assert scores.keys() == result["metrics"].keys()
    assert "version" in result["metrics"]["bleu_signature"]
    assert result["metrics"]["wer"] + result["metrics"]["exact_match"] == 100
    assert sum(result["won"].values()) == pytest.approx(100)
    assert result["won"].keys() == {"l2r", "r2l"}
    assert 0 <= result["unfinished"] <= 100

    assert result["split"] == "test"
    assert result["checkpoints"] == [STEPS]
    assert result["workdirs"] == [str(trained.both)]
    assert result["search"]["beam_size"] == 4
    assert result["search"]["coupling"] == "none"
    assert result["agreement"] is None
    assert result["config"] == (trained.both / "config.gin").read_text()
    assert result["provenance"].keys() >= {"commit", "versions", "device", "python"}
    assert result["provenance"]["versions"]["jax"]
    speed = result["speed"]
    assert speed["sentences_per_second"] > 0
    assert (speed["sentences"], speed["truncated"]) == (len(TEST_SOURCES), 1)
    assert speed["batches"] == 1
    assert speed["row_steps_run"] >= speed["row_steps_needed"] >= len(TEST_SOURCES) - 1
    assert result["training"]["updates"] == STEPS

    assert [sample["source"] for sample in result["samples"]] == TEST_SOURCES[:3]
    assert [sample["chosen"] for sample in result["samples"]] == outputs[:3]
    printed = capsys.readouterr().out
    assert "test: 9 sources" in printed
    assert printed.replace("\n", "").endswith("eval/test-none-beam4.json")


def test_markup_in_a_source_is_printed_as_it_is(workdir, evaluate, capsys):
    evaluate(workdir, bindings=["Evaluation.samples = 9"])
    assert "[/b]" in capsys.readouterr().out.splitlines()


def test_a_second_call_overwrites(workdir, evaluate):
    first = evaluate(workdir)
    (workdir / "eval" / "test-none-beam4.txt").write_text("something longer\n" * 100)
    second = evaluate(workdir)
    assert without(first[0], "speed") == without(second[0], "speed")
    assert first[1] == second[1]
    names = {path.name for path in (workdir / "eval").iterdir()}
    assert names == {"test-none-beam4.json", "test-none-beam4.txt"}


def test_what_differs_has_a_file_of_its_own(workdir, evaluate):
    half = STEPS // 2
    for name, split, arguments, bindings in (
        ("none-beam4", "test", [], []),
        ("none-beam4", "validation", [], []),
        ("none-beam2", "test", [], ["Search.beam_size = 2"]),
        ("none-beam4-alpha0.0", "test", [], ["Search.alpha = 0.0"]),
        ("none-beam4-alphaminus2.0", "test", [], ["Search.alpha = -2.0"]),
        ("none-beam4-Agreement.n_best2", "test", [], ["Agreement.n_best = 2"]),
        ("none-beam4-alpha0.0-n_best2", "test", [], ["Search.n_best = 2", "Search.alpha = 0.0"]),
        (f"none-beam4-checkpoint-{half}", "test", [f"--checkpoint={half}"], []),
    ):
        before = set((workdir / "eval").glob("*"))
        result, _ = evaluate(workdir, *arguments, name=name, split=split, bindings=bindings)
        assert len(set((workdir / "eval").glob("*")) - before) == 2
        assert result["checkpoints"] == [half if arguments else STEPS]
        assert all(binding in result["config"] for binding in bindings)


@pytest.mark.parametrize(
    ("search", "interact", "rescores", "name"),
    [
        ({}, True, False, "product-beam4"),
        ({"partner_weights": "score"}, False, False, "product-beam4-by-score"),
        ({}, False, True, "product-beam4-agreement"),
        ({}, True, True, "product-beam4-agreement-interact"),
    ],
)
def test_ways_to_search_and_to_choose_have_names(monkeypatch, search, interact, rescores, name):
    system = types.SimpleNamespace(
        search=SearchConfig("product", **search),
        generators=["one"],
        rescores=rescores,
        agreement=AgreementConfig(interact=interact),
    )
    monkeypatch.setattr(evaluate_verb, "_changes", lambda *_: "")
    assert evaluate_verb._search_name(types.SimpleNamespace(system=system)) == name


def test_a_name_is_never_too_long(workdir, evaluate):
    long = [f"Agreement.alphas = {tuple(i / 100 for i in range(60))}", "Search.min_length = 0"]
    for count in (1, 2):
        with pytest.raises(FileNotFoundError):
            evaluate(workdir, bindings=long[:count])
    names = sorted(path.name for path in (workdir / "eval").glob("*.json"))
    assert len(names) == 2
    assert max(map(len, names)) < 60


def test_partners_of_one_name_have_files_of_their_own(trained, tmp_path, evaluate):
    ignore = shutil.ignore_patterns("eval")
    for place in ("l2r", "r2l", "other/r2l"):
        source = getattr(trained, place.rpartition("/")[2])
        shutil.copytree(source, tmp_path / place, ignore=ignore)
    digest = hashlib.sha256(b"other/r2l").hexdigest()[:10]  # of other-r2l, which it is not
    for place, name in (("r2l", "r2l"), ("other/r2l", f"other-r2l-{digest}")):
        result, _ = evaluate(
            tmp_path / "l2r",
            f"--partner_workdir={tmp_path / place}",
            name=f"none-beam4-partner-{name}",
        )
        assert result["workdirs"][1] == str(tmp_path / place)


@pytest.mark.parametrize(
    "texts",
    [
        ["seed-2/r2l", "seed/2/r2l", "seed/2-r2l", "seed-2-r2l"],
        ["r2l=0.1", "r2l-0.1", "r2l 0.1", "-r2l-0.1"],
        ["'a/b'", "'a-b'", "'a b'"],
        ["x" * 80, "x" * 81, "x" * 300],
    ],
)
def test_other_values_and_paths_have_other_names(texts):
    names = [evaluate_verb._in_a_name(text) for text in texts]
    assert len(set(names)) == len(texts)
    assert all(re.fullmatch(r"[\w.+-]{1,100}", name) for name in names)


@pytest.mark.parametrize(
    ("text", "name"),
    [("-0.5", "minus0.5"), ("(0.5,)", "0.5"), ("(0.0, 1.5)", "0.0-1.5"), ("'swap'", "swap")],
)
def test_plain_values_are_their_names(text, name):
    assert evaluate_verb._in_a_name(text) == name


def test_other_data_than_those_of_training_are_said(trained, workdir, evaluate, tmp_path, caplog):
    first, _ = evaluate(workdir)
    assert "trained on other data" not in caplog.text
    digest = Prepared.open(str(trained.data)).manifest["splits"]["test"]["sha256"]
    assert first["examples_sha256"] == digest
    data = shutil.copytree(trained.data, tmp_path / "data")
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["fingerprint"]["source"] = "another"
    (data / "manifest.json").write_text(json.dumps(manifest))
    evaluate(workdir, bindings=[f"Data.directory = '{data}'"])
    assert len(list((workdir / "eval").glob("test-none-beam4-*.json"))) == 1
    assert f"{workdir} was trained on other data than {data} holds" in caplog.text


def test_a_run_whose_metrics_are_gone_is_scored(workdir, evaluate):
    (workdir / "metrics.jsonl").unlink()
    result, _ = evaluate(workdir)
    assert result["training"]["seconds"] is None


def test_agreement_is_tuned_once_and_kept(workdir, evaluate, caplog):
    rescore = ["Agreement.rescore = True"]
    caplog.set_level("INFO", logger="bidi")
    first, outputs = evaluate(workdir, name="none-beam4-agreement", bindings=rescore)
    assert "Agreement on the validation split" in caplog.text
    assert first["agreement"].keys() == {"weight", "alpha"}
    assert sum(first["won"].values()) == pytest.approx(100)

    caplog.clear()
    kept = workdir / "eval" / "agreement_choices.json"
    (choice,) = strict(kept.read_text())
    kept.write_text(json.dumps([choice | {"weight": 0.31}]))
    second, _ = evaluate(workdir, name="none-beam4-agreement", bindings=rescore)
    assert "Agreement on the validation split" not in caplog.text
    assert second["agreement"] == {"weight": 0.31, "alpha": first["agreement"]["alpha"]}

    another = [*rescore, "Search.alpha = 0.2"]
    third, _ = evaluate(workdir, name="none-beam4-agreement-alpha0.2", bindings=another)
    assert "Agreement on the validation split" in caplog.text
    assert third["agreement"]["weight"] != 0.31
    assert len(outputs) == len(TEST_SOURCES)


def test_a_partner_gives_what_one_model_of_both_gives(trained, workdir, evaluate):
    """Its two directions, told apart, are the same model here."""
    partner, outputs = evaluate(
        trained.l2r, f"--partner_workdir={trained.r2l}", name="none-beam4-partner-r2l"
    )
    one, same_outputs = evaluate(
        workdir, name="none-beam4-agreement", bindings=["Agreement.rescore = True"]
    )
    assert outputs == same_outputs
    for key in ("metrics", "directions", "won", "unfinished", "agreement", "samples"):
        assert rounded(partner[key]) == rounded(one[key])
    assert partner["workdirs"] == [str(trained.l2r), str(trained.r2l)]
    assert partner["checkpoints"] == [STEPS, STEPS]
    assert partner["speed"]["sentences"] == len(TEST_SOURCES)


def test_the_leak_is_measured(workdir, capsys):
    """Of the run's parameters as those of a model whose streams read each other.

    Fusion `tanh` has none of its own.
    """
    config.define_flags()
    with flagsaver.flagsaver():
        flags.FLAGS(["bidi.evaluate", f"--workdir={workdir}", "--leak", "--split=validation"])
        evaluate_verb.main(
            [
                "Transformer.interaction = 'layers'",
                "Transformer.fusion_weight = 2.0",
                "Search.coupling = 'paired'",
                "Evaluation.batch_tokens = 512",
            ]
        )
    name = (
        "validation-leak-couplingpaired-Transformer.fusion_weight2.0-Transformer.interactionlayers"
    )
    names = {path.name for path in (workdir / "eval").iterdir()}
    assert names == {f"{name}.json", f"{name}.png"}
    result = strict((workdir / "eval" / f"{name}.json").read_text())
    assert result.keys() == {
        *("split", "sentences", "checkpoints", "workdirs", "search"),
        *("examples", "same_outputs", "directions", "both"),
        *("examples_sha256", "training", "config", "provenance"),
    }
    assert result["split"] == "validation"
    assert result["examples"] == result["sentences"] == 16
    assert result["search"]["coupling"] == "paired"
    assert "Transformer.interaction = 'layers'" in result["config"]
    assert result["directions"].keys() == {"l2r", "r2l"}
    parts = {"all", "unseen", "shown", "end"}
    conditions = {"gold", "searched", "hidden"}
    for summary in (*result["directions"].values(), result["both"]):
        assert summary.keys() == parts | {"by_step", "by_position", "copied"}
        for part in parts:
            of_part = summary[part]
            assert of_part.keys() == {"labels", "cross_entropy", "accuracy", "leak"}
            assert of_part["cross_entropy"].keys() == of_part["accuracy"].keys() == conditions
            assert of_part["leak"].keys() == {"difference", "low", "high", "p"}
            entropies = of_part["cross_entropy"]
            assert of_part["leak"]["difference"] == pytest.approx(
                entropies["searched"] - entropies["gold"]
            )
        for curve in ("by_step", "by_position"):
            assert summary[curve].keys() == {"labels", "cross_entropy", "accuracy"}
            counted = sum(summary[curve]["labels"])
            assert counted == summary["all"]["labels"] - summary["end"]["labels"]
        assert summary["copied"].keys() == {"gold", "shown", "searched", "hidden", "wrong"}
        # The first token is predicted before anything of the other stream is seen, but its start.
        assert summary["by_step"]["cross_entropy"]["gold"][0] == pytest.approx(
            summary["by_step"]["cross_entropy"]["searched"][0]
        )
    shown = result["both"]["shown"]["cross_entropy"]
    assert shown["gold"] != pytest.approx(shown["searched"])
    assert shown["gold"] != pytest.approx(shown["hidden"])
    out = capsys.readouterr().out
    assert "both shown" in out
    assert out.replace("\n", "").endswith(f"eval/{name}.json")


def test_two_models_of_one_direction_are_known_by_their_numbers(
    trained, tmp_path, evaluate, capsys
):
    twin = shutil.copytree(trained.l2r, tmp_path / "twin", ignore=shutil.ignore_patterns("eval"))
    shutil.copytree(trained.l2r, tmp_path / "l2r", ignore=shutil.ignore_patterns("eval"))
    result, outputs = evaluate(
        twin, f"--partner_workdir={tmp_path / 'l2r'}", name="none-beam4-partner-l2r"
    )
    numbered = {"l2r (1)", "l2r (2)"}
    assert result["directions"].keys() == result["won"].keys() == numbered
    assert rounded(result["directions"]["l2r (1)"]) == rounded(result["directions"]["l2r (2)"])
    assert sum(result["won"].values()) == pytest.approx(100)
    assert result["samples"][0].keys() > numbered
    assert "l2r (2)" in capsys.readouterr().out
    assert len(outputs) == len(TEST_SOURCES)


@pytest.mark.parametrize("module", ["bidi.evaluate", "bidi.translate"])
def test_help_shows_what_names_the_models(module):
    command = [sys.executable, "-m", module, "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    for name in ("workdir", "checkpoint", "partner_workdir"):
        assert f"--{name}:" in shown


def test_print_config_searches_nothing(workdir, capsys):
    config.define_flags()
    with flagsaver.flagsaver():
        flags.FLAGS(["bidi.evaluate", f"--workdir={workdir}", "--print_config"])
        with pytest.raises(SystemExit):
            evaluate_verb.main(["Search.beam_size = 6"])
    assert "Search.beam_size = 6" in capsys.readouterr().out
    assert not (workdir / "eval").exists()


# What `verb.run` says in one line, as the last test shows.
EXPECTED_ERRORS = verb.USER_ERRORS


def test_what_is_missing_is_named(trained, workdir, evaluate, tmp_path):
    for arguments, bindings, says in (
        (["--workdir="], [], "--workdir is missing"),
        ([f"--workdir={tmp_path}"], [], "config.gin"),
        (["--checkpoint=7"], [], "no checkpoint '7'"),
        (["--checkpoint=first"], [], "--checkpoint=first is none of best, latest or a step"),
        ([], [f"Data.directory = '{tmp_path}/none'"], "holds no prepared data: run python -m bidi"),
        ([], ["Search.beam = 3"], "beam_size"),
        ([f"--partner_workdir={tmp_path}"], [], f"{tmp_path} is no workdir"),
        (["--leak"], [], "do not read each other"),
        ([f"--workdir={trained.l2r}"], ["Agreement.rescore = True"], "agreement needs two scores"),
        ([f"--partner_workdir={trained.l2r}"], ["Agreement.interact = True"], "Agreement.interact"),
    ):
        with pytest.raises(EXPECTED_ERRORS) as caught:
            evaluate(workdir, *arguments, bindings=bindings)
        assert says in str(caught.value)
    assert not list((workdir / "eval").glob("test*"))


def test_the_leak_is_of_one_model(trained, evaluate):
    with pytest.raises(EXPECTED_ERRORS, match="leave out --partner_workdir"):
        evaluate(trained.l2r, "--leak", f"--partner_workdir={trained.r2l}")


def test_a_split_that_is_not_there(trained, workdir, evaluate, tmp_path):
    data = shutil.copytree(trained.data, tmp_path / "data")
    manifest = json.loads((data / "manifest.json").read_text())
    del manifest["splits"]["test"]
    (data / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(EXPECTED_ERRORS, match="no split 'test'; there are: train, validation"):
        evaluate(workdir, bindings=[f"Data.directory = '{data}'"])


def test_an_error_of_the_user_is_one_line_and_no_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "bidi.evaluate", f"--workdir={tmp_path}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"bidi.evaluate: {tmp_path} holds no config.gin" in done.stderr
    assert "Traceback" not in done.stderr
