"""An export computes what our model computes, by an independent reading of its files."""

import dataclasses
import functools
import json
import sys

import jax
import numpy as np
import pytest

from bidi.data.config import DataConfig
from bidi.data.partner import GOLD
from bidi.data.pipeline import BatchConfig
from bidi.data.streams import Streams
from bidi.data.vocabulary import Vocabulary, VocabularyConfig, train
from bidi.errors import ConfigError, UserError
from bidi.evaluation.config import AgreementConfig, EvaluationConfig
from bidi.experiment import Experiment
from bidi.interchange import huggingface
from bidi.models.config import RecurrentConfig, TransformerConfig
from bidi.search.config import SearchConfig
from bidi.tokens import EOS, FIRST_TEXT_ID, PAD, UNK
from bidi.training.config import TrainingConfig
from bidi.training.optimizer import OptimizerConfig
from tests.interchange.transformers_layout import Layout
from tests.models import tiny

SHAPE = {
    "encoder_layers": 1,
    "decoder_layers": 2,
    "model_size": 8,
    "heads": 2,
    "feedforward_size": 12,
}
# Which side has the greater vocabulary matters where both get tables of one size.
FEW, MANY = (train(VocabularyConfig(model_type="char"), letters) for letters in ("ab", "uvwxyz"))
TARGET = np.array([7, 6, 6, 7, 6])


def make_experiment(joint=False, ways="both", markers="swap", search=None, **model):
    vocabulary = VocabularyConfig()
    return Experiment(
        data=DataConfig(directory="", source=None, target_vocabulary=None if joint else vocabulary),
        streams=Streams(ways, markers),
        partner=GOLD,
        batches=BatchConfig(source_length=9, target_length=9),
        model=TransformerConfig(**SHAPE | model),
        optimizer=OptimizerConfig(),
        training=TrainingConfig(),
        search=search or SearchConfig(coupling="none", alpha=0.0),
        agreement=AgreementConfig(),
        evaluation=EvaluationConfig(),
    )


def export(experiment, direction="l2r", source=FEW, target=MANY):
    """The model, its random parameters and the files of its export."""
    if experiment.data.target_vocabulary is None:
        source = target
    model = experiment.make_model(Vocabulary(source), Vocabulary(target))
    params = tiny.random_params(model)
    return model, params, huggingface.export_files(experiment, params, source, target, direction)


def read(files, name):
    return json.loads(files[name])


def log_probs_of_ours(model, params, source_S, streams):
    batch = {
        "source": source_S[None],
        "source_segments": np.ones_like(source_S)[None],
        "source_positions": np.arange(len(source_S))[None],
        "inputs": streams["inputs"].T[None],
        "segments": np.ones_like(streams["inputs"]).T[None],
        "positions": np.broadcast_to(np.arange(len(TARGET) + 1), (1, model.ways, len(TARGET) + 1)),
    }
    return np.asarray(softmaxed(model, params, batch))[0]


@functools.partial(jax.jit, static_argnames="model")
def softmaxed(model, params, batch):
    return jax.nn.log_softmax(model.apply({"params": params}, batch))


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize(
    ("joint", "tied", "own_decoders", "source", "target"),
    [
        (True, True, False, MANY, MANY),
        (True, False, True, MANY, MANY),
        (False, True, True, FEW, MANY),
        (False, False, False, MANY, FEW),
    ],
)
def test_log_probabilities_are_ours(norm, joint, tied, own_decoders, source, target):
    experiment = make_experiment(joint, norm=norm, tied_embeddings=tied, own_decoders=own_decoders)
    source_S = np.array([6, 7, 1, 6, 3])
    streams = experiment.streams.tokens(TARGET)
    for way, direction in enumerate(experiment.streams.directions):
        model, params, files = export(experiment, direction, source, target)
        ours_WTV = log_probs_of_ours(model, params, source_S, streams)
        layout = Layout(files)
        theirs_TV = layout.log_probs(source_S, streams["inputs"][:, way])
        assert layout.config["decoder_start_token_id"] == streams["inputs"][0, way]
        assert layout.config["eos_token_id"] == streams["labels"][-1, way]
        size = ours_WTV.shape[-1]
        np.testing.assert_allclose(theirs_TV[:, :size], ours_WTV[way], atol=2e-5)
        assert np.exp(theirs_TV[:, size:]).sum() == 0
        # The other way's would have been found out.
        assert np.abs(theirs_TV[:, :size] - ours_WTV[1 - way]).max() > 0.1
        untied_pegasus = norm == "pre" and not (joint and tied)
        assert layout.unread == ({"model.shared.weight"} if untied_pegasus else set())


def test_positions_suffice_for_the_longest_source_and_output():
    for cap, rows in ((5, 9), (30, 26), (12, 12)):
        search = SearchConfig(coupling="none", max_length_cap=cap)
        files = export(make_experiment(search=search))[2]
        assert read(files, "config.json")["max_position_embeddings"] == rows
        assert read(files, "generation_config.json")["max_new_tokens"] == min(cap, 26)
        assert read(files, "tokenizer_config.json")["model_max_length"] == 9
        Layout(files).log_probs(np.full(9, 6), np.full(min(cap, 26), 6))


def test_sources_are_cut_as_ours():
    experiment = make_experiment(search=SearchConfig(coupling="none", max_length_offset=1))
    cutting = dataclasses.replace(experiment.data, truncate_source=True, max_source_length=4)
    files = export(dataclasses.replace(experiment, data=cutting))[2]
    assert read(files, "tokenizer_config.json")["model_max_length"] == 5
    assert read(files, "generation_config.json")["max_new_tokens"] == 9
    assert read(files, "config.json")["max_position_embeddings"] == 9


def test_one_direction_alone():
    """A model of one way is what it is, whatever its name."""
    for direction in ("l2r", "r2l"):
        files = export(make_experiment(ways=direction), direction)[2]
        log_probs = Layout(files).log_probs(np.array([6, 3]), np.array([6]))
        assert np.isfinite(log_probs).all()


@pytest.mark.parametrize(
    ("markers", "direction", "start", "end"),
    [("swap", "l2r", 2, 3), ("swap", "r2l", 3, 2), ("tags", "l2r", 4, 3), ("tags", "r2l", 5, 3)],
)
def test_markers_and_what_may_be_written(markers, direction, start, end):
    files = export(make_experiment(markers=markers), direction)[2]
    for name in ("config.json", "generation_config.json"):
        config = read(files, name)
        assert config["decoder_start_token_id"] == start
        assert config["eos_token_id"] == end
        assert config["pad_token_id"] == PAD
        assert config["forced_eos_token_id"] is None  # theirs would be a token of ours
    suppressed = read(files, "generation_config.json")["suppress_tokens"]
    assert sorted([*suppressed, end]) == list(range(FIRST_TEXT_ID))


def test_search_is_the_experiments(caplog):
    search = SearchConfig("none", 3, length_penalty="plain", alpha=-0.5, min_length=2)
    config = read(export(make_experiment(search=search))[2], "generation_config.json")
    assert config["num_beams"] == 3
    assert config["length_penalty"] == -0.5
    assert config["min_new_tokens"] == 2
    assert config["early_stopping"] is False
    assert not caplog.text


@pytest.mark.parametrize(("alpha", "warns"), [(0.6, True), (0.0, False)])
def test_a_length_penalty_that_is_not_theirs_is_said(caplog, alpha, warns):
    search = SearchConfig("none", length_penalty="gnmt", alpha=alpha)
    export(make_experiment(search=search))
    assert ("transformers knows no GNMT length penalty" in caplog.text) == warns


def test_tokenizer_has_our_ids():
    for joint in (True, False):
        files = export(make_experiment(joint=joint))[2]
        assert ("target_vocab.json" in files) != joint
        sides = {"source.spm": "vocab.json", "target.spm": "target_vocab.json"}
        if joint:
            sides["target.spm"] = "vocab.json"
            assert files["source.spm"] == files["target.spm"] == MANY
        for model, ids in sides.items():
            vocabulary = Vocabulary(files[model])
            pieces = vocabulary.pieces(range(vocabulary.size))
            assert read(files, ids) == {piece: token for token, piece in enumerate(pieces)}
        config = read(files, "tokenizer_config.json")
        assert config["separate_vocabs"] != joint
        assert config["split_special_tokens"]
        special = {PAD: "pad_token", UNK: "unk_token", EOS: "eos_token"}
        assert [config[name] for name in special.values()] == Vocabulary(MANY).pieces(special)
        rest = [token for token in range(FIRST_TEXT_ID) if token not in special]
        assert config["additional_special_tokens"] == Vocabulary(MANY).pieces(rest)


@pytest.mark.parametrize("interaction", ["top", "layers"])
def test_streams_that_read_each_other_are_refused(interaction):
    with pytest.raises(UserError, match=f"'{interaction}'.*trained with 'non"):
        export(make_experiment(interaction=interaction))


def test_a_prior_over_the_sources_words_is_refused():
    with pytest.raises(UserError, match=r"Transformer\.copy_prior = True"):
        export(make_experiment(joint=True, copy_prior=True))


def test_a_recurrent_model_is_refused():
    experiment = dataclasses.replace(make_experiment(), model=RecurrentConfig(model_size=16))
    with pytest.raises(ConfigError, match=r"this is for @Transformer\(\) only"):
        export(experiment)


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'bidi\[export\]'"):
        export(make_experiment())
