"""Parameters that a run starts with: those of another run, or an error that says why not."""

import json
import shutil

import jax
import numpy as np
import pytest

from bidi import experiment
from bidi.data.prepared import Prepared
from bidi.errors import ConfigError
from bidi.evaluation.restore import restore_generator
from bidi.training.initial import initial_params
from tests.trained_run import STEPS


@pytest.fixture
def start(trained):
    """The parameters of a workdir as those of an experiment."""

    def call(workdir, *bindings):
        prepared = Prepared.open(str(trained.data))
        named = f"Training.initialize_from = '{workdir}'"
        loaded = experiment.load([trained.gin_file], [named, *bindings])
        model = loaded.make_model(prepared.source_vocabulary, prepared.target_vocabulary)
        shapes = jax.eval_shape(model.init, jax.random.key(0), model.smallest_batch())["params"]
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        placed = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), shapes
        )
        return initial_params(loaded, prepared, placed)

    return call


@pytest.fixture
def copy(trained, tmp_path):
    return shutil.copytree(trained.both, tmp_path / "copy")


def test_a_model_that_reads_both_ends_starts_with_one_that_does_not(start, copy, monkeypatch):
    """Fusion by tanh has no parameters. The best checkpoint counts, not the newest."""
    metrics = copy / "checkpoints" / str(STEPS) / "metrics" / "metrics"
    (name,) = json.loads(metrics.read_text())
    metrics.write_text(json.dumps({name: 1e9}))
    monkeypatch.setenv("RUNS", str(copy.parent))
    params = start("$RUNS/copy", "Transformer.interaction = 'layers'", "Search.coupling = 'paired'")
    loaded = experiment.load_run(str(copy), [])
    for checkpoint, step in (("latest", STEPS), ("best", STEPS // 2)):
        generator, found = restore_generator(str(copy), loaded, checkpoint)
        assert found == step
    jax.tree.map(np.testing.assert_array_equal, params, generator.params)


@pytest.mark.parametrize(
    ("bindings", "says"),
    [
        (["Transformer.own_decoders = True"], "Transformer.own_decoders = False there, True here"),
        (["Transformer.model_size = 32"], "Transformer.model_size = 16 there, 32 here"),
        (["Transformer.encoder_layers = 0"], "Transformer.encoder_layers = 1 there, 0 here"),
        (["Transformer.decoder_layers = 2"], "Transformer.decoder_layers = 1 there, 2 here"),
    ],
)
def test_a_model_of_another_shape(start, trained, bindings, says):
    with pytest.raises(ConfigError) as caught:
        start(trained.both, *bindings)
    assert f"Training.initialize_from = '{trained.both}': its parameters" in str(caught.value)
    assert says in str(caught.value)


def test_what_arrays_do_not_show_is_said(start, trained, caplog):
    with pytest.raises(
        ConfigError, match=r"mean something else here:\n  Transformer\.heads = 2 th"
    ):
        start(trained.both, "Transformer.heads = 1")
    caplog.set_level("INFO")
    start(trained.both, "Streams.markers = 'tags'")
    assert "\n  Streams.markers = 'swap' there, 'tags' here" in caplog.text


def test_a_model_of_another_kind_is_said_as_one_difference(start, trained, tmp_path):
    workdir = shutil.copytree(trained.both, tmp_path / "recurrent")
    text = (workdir / "config.gin").read_text().replace("Transformer.heads = 2", "")
    (workdir / "config.gin").write_text(f"{text}\nExperiment.model = @Recurrent()\n")
    with pytest.raises(ConfigError) as caught:
        start(workdir, "Transformer.model_size = 32")
    assert str(caught.value).splitlines()[1:] == [
        "  Experiment.model = @Recurrent() there, @Transformer() here"
    ]


def test_a_model_of_other_data(start, copy):
    data = json.loads((copy / "data.json").read_text())
    data["vocabularies"]["target"]["sha256"] = "0"
    (copy / "data.json").write_text(json.dumps(data))
    with pytest.raises(ConfigError, match=f"{copy}' was trained with other vocabularies"):
        start(copy)


def test_what_is_no_trained_model(start, copy, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"initialize_from = '{tmp_path}' holds no config"):
        start(tmp_path)
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(FileNotFoundError, match="has no checkpoint yet: train it first"):
        start(copy)
