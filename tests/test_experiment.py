import pathlib
import re

import numpy as np
import pytest

from bidi import experiment
from bidi.data import vocabulary
from bidi.data.vocabulary import Vocabulary, VocabularyConfig
from bidi.errors import ConfigError
from bidi.models.recurrent import Recurrent

ROOT = pathlib.Path(experiment.__file__).parent.parent
FILES = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "experiments").rglob("*.gin")
    if not path.name.endswith("base.gin")  # what the others include
)
WAYS = ("l2r", "r2l", "both")


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    """Includes are named from the repository's root."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("BIDI_DATA", "/anything")


def test_there_are_experiments():
    tasks = {pathlib.Path(file).parent.name for file in FILES}
    assert {"cmudict", "multi30k"} <= tasks
    for task in ("cmudict", "multi30k"):
        names = {pathlib.Path(file).stem for file in FILES if f"/{task}/" in file}
        assert {"l2r", "r2l", "both", "bidirectional"} <= names
    titles = {pathlib.Path(file).stem for file in FILES if "/titles/" in file}
    assert titles > {f"{data}_{ways}" for data in ("debian", "csl") for ways in WAYS}


@pytest.mark.parametrize("file", FILES)
def test_every_experiment_loads_and_replays(file, tmp_path):
    loaded = experiment.load([file], [])
    saved = tmp_path / experiment.CONFIG_FILE
    saved.write_text(loaded.settings.text)
    again = experiment.load_run(str(tmp_path), [])
    assert again == loaded
    assert again.settings.text == loaded.settings.text
    # Rows hold the longest pair and its marker.
    assert loaded.data.max_source_length < loaded.batches.source_length
    assert loaded.streams.length(loaded.data.max_target_length) <= loaded.batches.target_length


@pytest.mark.parametrize("task", ["cmudict", "multi30k"])
@pytest.mark.parametrize("name", ["l2r", "r2l", "both", "bidirectional"])
def test_the_directions_are_as_the_name_says(task, name):
    loaded = experiment.load([f"experiments/{task}/{name}.gin"], [])
    assert loaded.streams.ways == {"l2r": "l2r", "r2l": "r2l"}.get(name, "both")
    assert (loaded.model.interaction != "none") == (name == "bidirectional")


@pytest.mark.parametrize("file", [file for file in FILES if "/titles/" in file])
def test_titles(file):
    """Whatever the language: long texts are cut, and titles have metrics of their own."""
    loaded = experiment.load([file], [])
    name = pathlib.Path(file).stem
    assert loaded.data.truncate_source
    assert loaded.evaluation.metric == "rouge"
    assert (loaded.evaluation.tokens == "characters") == name.startswith("csl_")
    ways = name.rpartition("_")[2]
    assert loaded.streams.ways == (ways if ways in WAYS else "both")
    recurrent = "_recurrent_" in name
    assert recurrent == (loaded.model.name == "Recurrent")
    # The recurrent model's streams never share a decoder.
    assert recurrent or loaded.model.own_decoders == (loaded.streams.ways == "both")
    # A search may write whatever training has shown.
    longest = loaded.search.max_length(np.array(1))
    assert longest > loaded.data.max_target_length
    assert longest == loaded.batches.target_length or loaded.streams.layout == "halves"


@pytest.mark.parametrize("file", FILES)
def test_the_head_tells_all(file):
    head = (ROOT / file).read_text().partition("\n\n")[0]
    fields = re.findall(r"^# ([A-Z]\w+) {2,}\S", head, re.MULTILINE)
    assert fields == ["Paper", "Data", "Expected", "Time", "Hardware", "Command"]
    command = re.sub(r"\\?\n#", " ", head.partition("# Command")[2])
    if "launch/" not in command:
        trainer = "pseudo" if "Partner.recipe" in (ROOT / file).read_text() else "train"
        for verb in ("prepare", trainer, "evaluate"):
            assert f"python -m bidi.{verb} " in command
        assert command.count(f"--gin_file={file}") == 2
        workdir = f"--workdir=runs/{pathlib.Path(file).parent.name}/{pathlib.Path(file).stem}"
        assert len(re.findall(rf"{workdir}\b", command)) == 2


BOTH, LEFT = "experiments/cmudict/both.gin", "experiments/cmudict/l2r.gin"


@pytest.mark.parametrize(
    ("file", "bindings", "says"),
    [
        (
            LEFT,
            ["Transformer.interaction = 'layers'"],
            r"Transformer\.interaction = 'layers' needs two directions, but Streams\.ways = 'l2r'; "
            "use 'both', or interaction 'none'",
        ),
        (
            BOTH,
            ["Search.coupling = 'paired'"],
            r"Search\.coupling = 'paired' couples streams that read each other, but "
            r"Transformer\.interaction = 'none'; use coupling 'none'",
        ),
        (
            BOTH,
            ["Partner.kind = 'predicted'"],
            r"Partner\.kind = 'predicted' is for streams that read each other, but "
            r"Transformer\.interaction = 'none'",
        ),
        (BOTH, ["Partner.corrupted = 0.1"], r"Partner\.corrupted = 0\.1 is for .* 'predicted'"),
        (
            "experiments/cmudict/gold.gin",
            ["Transformer.fusion = 'gate'"],
            r"Transformer\.fusion_weight = 1\.0 is for Transformer\.fusion = 'tanh' and 'linear', "
            "but it is 'gate'",
        ),
        (BOTH, ["Training.partitioner = 'mesh'", "Mesh.data = 0"], r"Mesh\.data = 0, .* 1 or more"),
        (LEFT, ["Search.coupling = 'product'"], "'product' needs a model of two directions"),
        (
            "experiments/cmudict/bidirectional.gin",
            ["Search.beam_size = 5"],
            r"Search\.beam_size = 5 is odd, but coupling 'paired'",
        ),
        (BOTH, ["Search.n_best = 5"], r"Search\.n_best = 5, but each beam has 4 hypotheses"),
        (
            "experiments/cmudict/halves.gin",
            ["Search.coupling = 'paired'"],
            r"Streams\.layout = 'halves' and Search\.coupling = 'paired' do not fit",
        ),
        (
            "experiments/cmudict/bidirectional.gin",
            ["Search.coupling = 'joint'"],
            r"Streams\.layout = 'whole' and Search\.coupling = 'joint' do not fit",
        ),
        (
            "experiments/cmudict/bidirectional.gin",
            ["Search.partner_weights = 'score'"],
            r"Search\.partner_weights = 'score' is for Search\.coupling = 'product'.*'paired'",
        ),
        (LEFT, ["Streams.layout = 'halves'"], r"'halves' is written from both ends.*'l2r'"),
        (
            "experiments/cmudict/bidirectional.gin",
            ["Partner.kind = 'pseudo'"],
            r"Partner\.kind = 'pseudo' needs Partner\.directory",
        ),
        (
            "experiments/cmudict/pseudo.gin",
            ["Partner.kind = 'gold'"],
            r"Partner\.directory = 'data/cmudict-pseudo' is for Partner\.kind = 'pseudo', but",
        ),
        (
            BOTH,
            ["Partner.kind = 'pseudo'", "Partner.directory = 'x'"],
            r"Partner\.kind = 'pseudo' is for streams that read each other, but Transformer\.inter",
        ),
        (
            "experiments/cmudict/pseudo.gin",
            ["Pseudo.folds = 0"],
            r"Pseudo\.folds = 0 must be at least 1",
        ),
        (
            BOTH,
            ["Training.hold_out = (2, 2)"],
            r"Training\.hold_out = \(2, 2\): write \(fold, folds",
        ),
        (
            BOTH,
            ["Training.hold_out = (0, 1)"],
            r"Training\.hold_out = \(0, 1\): write \(fold, folds",
        ),
        (
            "experiments/cmudict/halves.gin",
            ["Partner.kind = 'pseudo'", "Partner.directory = 'x'"],
            r"Partner\.kind = 'pseudo' is for whole streams, but Streams\.layout = 'halves'",
        ),
        (
            BOTH,
            ["Transformer.copy_prior = True"],
            r"Transformer\.copy_prior = True.*Data\.target_vocabulary is a vocabulary of its own",
        ),
        (
            BOTH,
            ["Experiment.model = @Recurrent()"],
            r"Transformer\.interaction = 'none': nothing uses it: no Transformer is built",
        ),
        (BOTH, ["Experiment.model = @Recurrent"], r"write \(\) after the reference"),
        (
            BOTH,
            ["Mesh.fsdp = 8"],
            r"Mesh\.fsdp = 8 is for Training\.partitioner = 'mesh', but it is",
        ),
        (
            BOTH,
            ["Transformer.fusion = 'gate'"],
            r"Transformer\.fusion = 'gate' is for streams that read each other",
        ),
        (
            LEFT,
            ["Transformer.own_decoders = True"],
            r"own_decoders = True gives each of two directions its own, but Streams\.ways = 'l2r'",
        ),
        (BOTH, ["Transformer.heads = 3"], r"Transformer\.model_size = 128 is no multiple"),
        (
            BOTH,
            ["Transformer.interaction = 'layers'", "Transformer.decoder_layers = 0"],
            r"Transformer\.decoder_layers = 0: there is no layer",
        ),
        (BOTH, ["Training.evaluate_every = 300"], r"Training\.checkpoint_every = 500"),
        (BOTH, ["Streams.ways = 'left'"], r"--gin\.Streams\.ways.*'left'"),
        (BOTH, ["Search.beamsize = 5"], "beam_size"),
    ],
)
def test_contradictions_are_refused(file, bindings, says):
    with pytest.raises(ConfigError, match=says):
        experiment.load([file], bindings)


@pytest.mark.parametrize(
    "numbers",
    [
        "Training.steps = 0",
        "Training.evaluate_every = 0",
        "Training.log_every = 0",
        "Training.accumulation = 0",
        "Training.seed = -1",
        "Training.seed = 4294967296",
        "Training.label_smoothing = 1.0",
        "Training.ema_decay = 1.5",
        "Data.max_source_length = 0",
        "Data.max_target_length = -3",
        "Optimizer.learning_rate = -1.0",
        "Optimizer.clip_norm = -1.0",
        "Optimizer.b2 = 1.0",
        "Batches.rows = 0",
        "Batches.packing_bins = 0",
        "Transformer.heads = 0",
        "Transformer.dropout = 1.0",
        "Search.beam_size = 0",
        "Search.n_best = 0",
        "Search.min_length = -1",
        "Search.max_length_factor = -1.0",
        "Search.max_length_cap = 0",
        "Agreement.n_best = 0",
        "Evaluation.batch_tokens = 0",
        "Evaluation.samples = -1",
    ],
)
def test_a_number_out_of_range_is_refused_by_name(numbers):
    with pytest.raises(ConfigError, match=f"{re.escape(numbers)} must be at least "):
        experiment.load([BOTH], [numbers])


@pytest.mark.parametrize("name", ["weights", "alphas"])
def test_agreement_needs_something_to_choose(name):
    with pytest.raises(ConfigError, match=rf"Agreement\.{name} = \(\): name one choice at least"):
        experiment.load([BOTH], [f"Agreement.{name} = ()"])


@pytest.mark.parametrize("rate", ["Transformer.dropout = 1.0", "Training.ema_decay = 1.0"])
def test_a_share_is_less_than_one(rate):
    with pytest.raises(ConfigError, match="must be at least 0 and less than 1"):
        experiment.load([BOTH], [rate])
    experiment.load([BOTH], [rate.replace("1.0", "0.0")])


RECURRENT = """
Data.directory = 'anywhere'
Data.source = @ParallelText()
ParallelText.source = {}
ParallelText.target = {}
Streams.ways = 'both'
Search.coupling = 'product'
Experiment.model = @Recurrent()
Recurrent.interaction = 'top'
Recurrent.copy_prior = True
Recurrent.model_size = 16
"""


def test_a_recurrent_model_is_one_binding(tmp_path):
    (tmp_path / "run.gin").write_text(RECURRENT)
    loaded = experiment.load([str(tmp_path / "run.gin")], [])
    text = loaded.settings.text
    assert "Experiment.model = @Recurrent()" in text
    (tmp_path / "config.gin").write_text(text)
    assert experiment.load_run(str(tmp_path), []) == loaded
    vocabulary_ = Vocabulary(vocabulary.train(VocabularyConfig(model_type="char"), ["abc"]))
    model = loaded.make_model(vocabulary_, vocabulary_)
    assert isinstance(model, Recurrent)
    assert (model.config.model_size, model.ways, model.source_vocabulary) == (16, 2, None)
    predicted = experiment.load_run(str(tmp_path), ["Partner.kind = 'predicted'"])
    assert predicted.partner.kind == "predicted"
    with pytest.raises(ConfigError, match=r"Experiment\.model = @Recurrent\(\), but this is for"):
        loaded.transformer  # noqa: B018
    for changed, says in (
        ("Recurrent.interaction = 'none'", r"'product'.*Recurrent\.interaction = 'none'"),
        ("Recurrent.interaction = 'layers'", r"Recurrent\.interaction"),
        ("Recurrent.heads = 3", r"Recurrent\.model_size = 16 is no multiple"),
    ):
        with pytest.raises(ConfigError, match=says):
            experiment.load([str(tmp_path / "run.gin")], [changed])


def test_what_an_update_is_made_of_is_the_configs(tmp_path):
    (tmp_path / "run.gin").write_text(RECURRENT)
    changes = [
        "Partner.kind = 'predicted'",
        "Training.label_smoothing = 0.3",
        "Training.ema_decay = 0.5",
        "Training.skip_nonfinite = 2",
        "Training.prng_impl = 'rbg'",
    ]
    loaded = experiment.load([str(tmp_path / "run.gin")], changes)
    letters = Vocabulary(vocabulary.train(VocabularyConfig(model_type="char"), ["abc"]))
    trainer = loaded.make_trainer(letters, letters)
    assert trainer.partner.kind == "predicted"
    assert (trainer.label_smoothing, trainer.ema_decay) == (0.3, 0.5)
    assert trainer.skips_nonfinite
    assert trainer.prng_impl == "rbg"
    plain = experiment.load([str(tmp_path / "run.gin")], []).make_trainer(letters, letters)
    assert not plain.skips_nonfinite
    assert plain.partner.kind == "gold"


def test_a_workdir_is_loaded_with_changes(tmp_path):
    text = experiment.load([BOTH], []).settings.text
    assert "Experiment.model" not in text  # as in workdirs from when there was one model only
    (tmp_path / "config.gin").write_text(text)
    loaded = experiment.load_run(str(tmp_path), ["Search.beam_size = 8"])
    assert loaded.search.beam_size == 8
    assert loaded.model.model_size == 128


def test_what_is_no_workdir(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path} holds no config\.gin"):
        experiment.load_run(str(tmp_path), [])


def test_the_model_fits_the_vocabularies():
    letters = VocabularyConfig(model_type="char")
    source, target = (Vocabulary(vocabulary.train(letters, [text])) for text in ("abc", "vwxyz"))
    separate = experiment.load([BOTH], []).make_model(source, target)
    assert (separate.ways, separate.source_vocabulary, separate.target_vocabulary) == (2, 9, 11)
    joint = experiment.load(["experiments/multi30k/l2r.gin"], [])
    assert joint.make_model(target, target).source_vocabulary is None
    assert joint.make_model(target, target).ways == 1
