"""The verb: the whole recipe in small, and labels only, killed and begun again."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from etils import epath

from bidi import config, distributed, experiment
from bidi import pseudo as pseudo_verb
from bidi.data import pipeline, pseudo
from bidi.data.folds import fold_of
from bidi.data.partner import GOLD, Partner
from bidi.data.prepared import Prepared
from bidi.errors import ConfigError, DataError, PathError, UserError
from bidi.evaluation import label
from bidi.evaluation.restore import restore_generator
from bidi.files import path_of
from bidi.training import loop
from bidi.training.lock import locked
from bidi.training.loop import Outcome
from bidi.training.workdir import CannotResumeError
from tests import xla_flags
from tests.test_distributed import free_port

RECIPE = """
Transformer.interaction = 'layers'
Transformer.encoder_layers = 0
Search.coupling = 'paired'
Partner.kind = 'pseudo'
Partner.directory = '{root}/labels'
Partner.loss_on_pseudo = True
Partner.recipe = @Pseudo()
Pseudo.labeller_files = ('{labeller}',)
Pseudo.labeller_bindings = (
    'Transformer.encoder_layers = 0',
    'Training.steps = 4',
    'Training.evaluate_every = 4',
    'Training.checkpoint_every = 4',
    'Search.beam_size = 1',
)
Pseudo.folds = 2
Training.initialize_from = '{root}/labels/labellers/both-0-of-2'
# Nothing moves: the parameters are still those that it started with.
Optimizer.learning_rate = 1e-30
Training.steps = 2
Training.evaluate_every = 2
Training.checkpoint_every = 2
"""


@pytest.fixture
def recipe(trained, tmp_path):
    """An experiment file; all that it makes comes beside it."""
    gin_file = tmp_path / "pseudo.gin"
    own = RECIPE.format(root=tmp_path, labeller=trained.gin_file)
    gin_file.write_text(trained.gin_file.read_text() + own)
    return gin_file


def run(*arguments, bindings=()):
    config.define_flags()
    with flagsaver.flagsaver():
        flags.FLAGS(["bidi.pseudo", *map(str, arguments)])
        pseudo_verb.main(list(bindings))


def files(directory):
    """Every file's content but for what says by whom, when and by what commit it was made."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name not in ("provenance.json", "lock")
    }


def sources(pairs):
    return [tuple(pair["source"]) for pair in pairs.__getitems__(range(len(pairs)))]


def test_the_whole_recipe_stopped_and_gone_on_with(recipe, trained, tmp_path, monkeypatch, capsys):
    workdir, labels = tmp_path / "run", tmp_path / "labels"
    arguments = [f"--gin_file={recipe}", f"--workdir={workdir}"]
    train, training_batches = loop.train, pipeline.training_batches
    validation_batches = pipeline.validation_batches
    trained_in, trained_on, validated_beside = [], [], []

    def train_once(loaded, where, stop):
        if trained_in:
            return Outcome(0, finished=False)
        trained_in.append(where.name)
        return train(loaded, where, stop)

    def watched(pairs, streams, batches, partner, **more):
        trained_on.append((pairs, partner))
        return training_batches(pairs, streams, batches, partner, **more)

    def validated(pairs, streams, batches, partner, **more):
        validated_beside.append(partner)
        return validation_batches(pairs, streams, batches, partner, **more)

    # Asked to stop before the second labeller.
    monkeypatch.setattr(pipeline, "training_batches", watched)
    monkeypatch.setattr(pipeline, "validation_batches", validated)
    monkeypatch.setattr(loop, "train", train_once)
    run(*arguments)
    assert "Stopped; the same command goes on" in capsys.readouterr().out
    assert {path.name for path in labels.rglob("*-of-2")} == {"both-0-of-2"}
    assert not workdir.exists()
    first = files(labels)
    load_labellers, parameters = pseudo_verb.load_labellers, []

    def load_and_watch(*args):
        labellers = load_labellers(*args)
        for labeller in labellers:
            parameters.extend(map(weakref.ref, jax.tree.leaves(labeller.generator.params)))
        return labellers

    def train_alone(loaded, where, stop):
        # What labelled leaves its memory to what is trained.
        assert bool(parameters) == (where == workdir)
        assert all(array() is None for array in parameters)
        return train(loaded, where, stop)

    with monkeypatch.context() as patch:
        patch.setattr(pseudo_verb, "load_labellers", load_and_watch)
        patch.setattr(loop, "train", train_alone)
        run(*arguments)
    monkeypatch.setattr(loop, "train", train)
    assert "Stopped" not in capsys.readouterr().out
    assert first.items() <= files(labels).items()

    # No labeller saw what it labelled; the model sees everything, beside what they wrote.
    all_sources = sources(Prepared.open(str(trained.data)).pairs("train"))
    in_fold = [fold_of(np.array(source, np.int32), 2) for source in all_sources]
    (again, partner), _, (other, _), (everything, main_partner) = trained_on
    assert partner == GOLD
    for fold, pairs in ((0, again), (1, other)):
        kept = [source for source, its in zip(all_sources, in_fold, strict=True) if its != fold]
        assert sources(pairs) == kept
        assert 0 < len(kept) < len(all_sources)
    assert (main_partner.kind, main_partner.directory) == ("pseudo", str(labels))
    assert sources(everything) == all_sources
    # It learns the labels too, but is not chosen for them.
    assert main_partner.loss_on_pseudo
    assert validated_beside[-1] == dataclasses.replace(main_partner, loss_on_pseudo=False)
    manifest = json.loads((labels / "manifest.json").read_text())
    assert len(manifest["labellers_of_folds"]) == 2
    assert everything.__getitems__([0])[0].keys() == {"source", "target", "l2r", "r2l"}

    # It started with the parameters of a labeller.
    loaded = experiment.load_run(str(workdir), [])
    generator, step = restore_generator(str(workdir), loaded, "best")
    labeller = labels / "labellers" / "both-0-of-2"
    its = experiment.load_run(str(labeller), [])
    assert its.training.hold_out == (0, 2)
    start, _ = restore_generator(str(labeller), its, "best")
    assert step == 2
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-20), generator.params, start.params
    )

    # A second run does nothing.
    before = files(tmp_path)
    monkeypatch.setattr(label, "_write_shard", None)
    run(*arguments)
    assert files(tmp_path) == before

    # Labels may be moved, and made otherwise with the same outcome, but not exchanged.
    moved = shutil.copytree(labels, tmp_path / "moved")
    changes = [f"Partner.directory = '{moved}'", "Training.steps = 1", "Pseudo.folds = 3"]
    main = experiment.load([recipe], changes)
    assert loop.train(main, workdir).finished
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "allgather", second_differs("pseudo outputs for train"))
        with pytest.raises(ConfigError, match="process 1 has pseudo outputs for train = another"):
            loop.train(main, workdir)
    edited = json.loads((moved / "manifest.json").read_text())
    edited["splits"]["train"]["sha256"] = "0"
    (moved / "manifest.json").write_text(json.dumps(edited))
    with pytest.raises(CannotResumeError, match="trained beside other pseudo outputs than Partner"):
        loop.train(main, workdir)
    with pytest.raises(UserError, match=r"Training\.seed = 5 (?s:.*) a labeller's"):
        run(*arguments, bindings=["Pseudo.labeller_bindings = ('Training.seed = 5',)"])


def second_differs(name):
    """As if there were a second process, with another value of this name."""

    def allgather(value):
        differs = isinstance(value, dict) and name in value
        return [value, value | {name: "another"}] if differs else [value]

    return allgather


def test_labellers_of_all_processes_are_alike(recipe, trained, tmp_path, monkeypatch):
    labeller = tmp_path / "labeller.gin"
    own = "\nEvaluation.samples = %SAMPLES\nSAMPLES = 2\n"
    labeller.write_text(trained.gin_file.read_text() + own)
    check_alike, compared = distributed.check_alike, []

    def check_and_note(values):
        compared.append(values.get("Evaluation.samples"))
        check_alike(values)

    monkeypatch.setattr(loop, "train", None)
    monkeypatch.setattr(distributed, "check_alike", check_and_note)
    monkeypatch.setattr(
        distributed,
        "allgather",
        lambda value: second_differs("Evaluation.samples")(value) if len(compared) > 1 else [value],
    )
    arguments = (f"--gin_file={recipe}", f"--workdir={tmp_path / 'run'}")
    with pytest.raises(ConfigError, match=f"the labeller {labeller} of .*: process 1 has Evaluat"):
        run(*arguments, bindings=[f"Pseudo.labeller_files = ('{labeller}',)"])
    assert compared == ["3", "2"]


def test_what_was_checked_is_what_runs(recipe, trained, tmp_path, monkeypatch):
    """Whatever becomes of the files while labellers are trained."""
    labeller = shutil.copy(trained.gin_file, tmp_path / "labeller.gin")
    bindings = [f"Pseudo.labeller_files = ('{labeller}',)"]
    changed = experiment.load([recipe], bindings).partner.recipe.labeller_bindings
    meant, ran = [], []
    for fold in (0, 1):
        loaded = experiment.load([labeller], [*changed, f"Training.hold_out = ({fold}, 2)"])
        meant.append(loaded.settings.text)
    meant.append(experiment.load([recipe], bindings).settings.text)

    def train(loaded, *_):
        ran.append(loaded.settings.text)
        for file in (labeller, recipe):
            file.write_text(file.read_text() + "\nTraining.seed = 9\n")
        return Outcome(4, finished=True)

    monkeypatch.setattr(loop, "train", train)
    monkeypatch.setattr(pseudo_verb, "load_labellers", lambda *_: ())
    monkeypatch.setattr(pseudo_verb, "label", lambda *_: True)
    run(f"--gin_file={recipe}", f"--workdir={tmp_path / 'run'}", bindings=bindings)
    assert ran == meant


def test_each_labeller_of_one_direction_has_a_place_of_its_own(
    recipe, trained, tmp_path, monkeypatch
):
    files = [tmp_path / f"{way}.gin" for way in ("l2r", "r2l")]
    for file in files:
        text = trained.gin_file.read_text()
        file.write_text(text.replace("Streams.ways = 'both'", f"Streams.ways = '{file.stem}'"))
    loaded_from = []
    monkeypatch.setattr(loop, "train", lambda *_: Outcome(4, finished=True))
    monkeypatch.setattr(
        pseudo_verb, "load_labellers", lambda workdirs, *_: loaded_from.append(workdirs)
    )
    monkeypatch.setattr(pseudo_verb, "label", lambda *_: True)
    bindings = [f"Pseudo.labeller_files = {tuple(map(str, files))}"]
    run(f"--gin_file={recipe}", f"--workdir={tmp_path / 'run'}", bindings=bindings)
    labellers = tmp_path / "labels" / "labellers"
    assert loaded_from == [
        {way: path_of(labellers / f"{way}-{fold}-of-2") for way in ("l2r", "r2l")}
        for fold in (0, 1)
    ]


@pytest.mark.parametrize("phase", ["train", "label"])
def test_a_signal_at_the_end_of_a_phase_stops_before_the_next(
    recipe, tmp_path, monkeypatch, capsys, phase
):
    phases = []

    def ends(its, result):
        def call(*_):
            phases.append(its)
            if its == phase:
                os.kill(os.getpid(), signal.SIGTERM)
            return result

        return call

    monkeypatch.setattr(loop, "train", ends("train", Outcome(4, finished=True)))
    monkeypatch.setattr(pseudo_verb, "load_labellers", lambda *_: ())
    monkeypatch.setattr(pseudo_verb, "label", ends("label", True))
    run(f"--gin_file={recipe}", f"--workdir={tmp_path / 'run'}")
    assert phases == {"train": ["train"], "label": ["train", "train", "label"]}[phase]
    assert "Stopped; the same command goes on" in capsys.readouterr().out


def test_a_great_corpus_has_few_shards(tmp_path):
    assert len(pseudo.shard_paths(tmp_path, "train", 4_500_000)) <= 256
    assert pseudo.pairs_per_shard(100_000) == 4096


# Two processes, each of which dies while it writes its second shard.
KILLED = """
import sys, time
from bidi.data import pseudo
from bidi.evaluation import label
from bidi import pseudo as pseudo_verb, verb

class Writer:
    def __init__(self, path):
        self.path = path
    def write(self, record):
        self.path.write_bytes(b"half a shard")
        time.sleep(1000)

shards = []
def record_writer(path, make=label.record_writer):
    shards.append(path)
    return Writer(path) if len(shards) == 2 else make(path)

label.record_writer = record_writer
pseudo.PAIRS_PER_SHARD = 50
verb.run("bidi.pseudo", pseudo_verb.main, processes=True)
"""


@pytest.mark.usefixtures("restore_once")
def test_killed_while_it_labels(trained, tmp_path, monkeypatch):
    def arguments(output):
        return [
            f"--l2r_workdir={trained.both}",
            f"--r2l_workdir={trained.both}",
            f"--output={tmp_path / output}",
        ]

    greedy = "--gin.Search.beam_size=1"
    environment = os.environ | {"XLA_FLAGS": xla_flags.QUICK}
    together = [f"--coordinator=127.0.0.1:{free_port()}", "--processes=2"]
    processes = []
    for number in (0, 1):
        with (tmp_path / f"log-{number}").open("w") as log:
            command = [sys.executable, "-c", KILLED, *arguments("killed"), greedy, *together]
            process = subprocess.Popen(
                [*command, f"--process={number}"],
                env=environment, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        processes.append(process)
    halves = [
        tmp_path / "killed" / f"train-0000{number}-of-00004.array_record.tmp" for number in (2, 3)
    ]
    end = time.monotonic() + 300
    while not all(half.exists() and half.read_bytes() for half in halves):
        for number, process in enumerate(processes):
            assert process.poll() is None, (tmp_path / f"log-{number}").read_text()
        assert time.monotonic() < end
        time.sleep(0.01)
    for process in processes:
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
    left = files(tmp_path / "killed")
    assert len(left) == 5  # a shard of each, half of another, what they are

    monkeypatch.setattr(pseudo, "PAIRS_PER_SHARD", 50)
    for output in ("killed", "undisturbed"):
        run(*arguments(output), bindings=["Search.beam_size = 1"])
    found, undisturbed = files(tmp_path / "killed"), files(tmp_path / "undisturbed")
    for half in halves:
        del left[half.name]
    assert left.items() - found.items() == {("manifest.json", left["manifest.json"])}
    manifests = [json.loads(one.pop("manifest.json")) for one in (found, undisturbed)]
    assert manifests[0]["splits"] == manifests[1]["splits"]
    assert found == undisturbed
    # Such labels are for any model of these data.
    interacting = ["Transformer.interaction = 'layers'", "Search.coupling = 'paired'"]
    labelled = [*interacting, "Partner.kind = 'pseudo'", f"Partner.directory = '{tmp_path}/killed'"]
    loaded = experiment.load([trained.gin_file], labelled)
    assert loaded.partner == Partner("pseudo", str(tmp_path / "killed"))
    pairs = loaded.pairs(Prepared.open(str(trained.data)), "train")
    assert len(pairs.__getitems__(range(200))) == 200


def test_one_labels_at_a_time(trained, tmp_path):
    output = epath.Path(tmp_path / "labels")
    arguments = (f"--l2r_workdir={trained.both}", f"--r2l_workdir={trained.both}")
    with locked(output), pytest.raises(UserError, match=f"another run is at work in {output} "):
        run(*arguments, f"--output={output}")
    assert [path.name for path in output.iterdir()] == ["lock"]


@pytest.mark.parametrize(
    ("arguments", "bindings", "error", "says"),
    [
        ([], [], UserError, "name models by --l2r_workdir and --r2l_workdir"),
        (["--l2r_workdir=x", "--output=y"], [], UserError, "name models by --l2r_workdir and"),
        (
            ["--l2r_workdir=/none", "--r2l_workdir=/none", "--output=y"],
            [],
            FileNotFoundError,
            "/none holds no config.gin",
        ),
        (
            ["--l2r_workdir=x", "--r2l_workdir=x", "--output=y", "--workdir=z"],
            [],
            UserError,
            "--workdir is for --gin_file",
        ),
        (["RECIPE"], [], UserError, "--workdir is missing"),
        (["RECIPE", "--workdir=x", "--checkpoint=7"], [], UserError, "leave out .*checkpoint"),
        (["RECIPE", "--workdir=x", "--output=y"], [], UserError, "labellers of its own"),
        (
            ["RECIPE", "--workdir=x"],
            ["Pseudo.labeller_bindings = ('Training.stepz = 3',)"],
            ConfigError,
            r"the labeller .*run\.gin of Partner\.recipe: .*Did you mean 'steps'",
        ),
        (
            ["RECIPE", "--workdir=x"],
            ["Pseudo.labeller_bindings = (\"Streams.ways = 'l2r'\",)"],
            ConfigError,
            r"Pseudo\.labeller_files = .* write l2r: name one model of both directions, or one for",
        ),
        (
            ["RECIPE", "--workdir=x"],
            ["Pseudo.labeller_bindings = (\"Training.initialize_from = 'x'\",)"],
            ConfigError,
            r"the labeller .*run\.gin .*initialize_from = 'x', which may have seen what it shall",
        ),
        (["GOLD", "--workdir=x"], [], UserError, r"Partner\.recipe is not set"),
        # Said before anything is trained.
        (["RECIPE", "--workdir=x[1]"], [], PathError, r"x\[1\]: in a directory with a bracket"),
        (["RECIPE", "TAKEN"], [], CannotResumeError, r"resumed with\n(?s:.*)'pseudo' \(it has 'go"),
        (
            ["RECIPE", "--workdir=x"],
            ["Batches.target_length = 3"],
            DataError,
            "raise it, or prepare",
        ),
        (
            ["RECIPE", "--workdir=x"],
            ["Pseudo.labeller_bindings = ('Batches.rows = 7',)"],
            ConfigError,
            r"the labeller .*run\.gin of Partner\.recipe: .*Batches\.rows = 7",
        ),
    ],
)
def test_errors_name_what_is_wrong(recipe, trained, arguments, bindings, error, says, monkeypatch):
    monkeypatch.setattr(loop, "train", None)
    named = {
        "RECIPE": f"--gin_file={recipe}",
        "GOLD": f"--gin_file={trained.gin_file}",
        "TAKEN": f"--workdir={trained.both}",
    }
    with pytest.raises(error, match=says):
        run(*(named.get(argument, argument) for argument in arguments), bindings=bindings)


def test_training_beside_labels_that_are_not_there_names_the_verb(recipe, tmp_path):
    loaded = experiment.load([recipe], ["Training.initialize_from = ''"])
    with pytest.raises(FileNotFoundError, match="labels' holds no pseudo outputs: run python -m b"):
        loop.train(loaded, tmp_path / "run")
    assert not (tmp_path / "run").exists()
