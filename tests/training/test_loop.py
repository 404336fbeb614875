"""What a run's parts are given, and what it writes."""

import json

import jax
import numpy as np
import pytest

from bidi import experiment
from bidi.data import pipeline
from bidi.data.prepared import Prepared
from bidi.evaluation.restore import restore_generator
from bidi.training import loop
from bidi.training.loss import LossSums
from bidi.training.report import SilentReporter
from bidi.training.step import TrainState
from tests.trained_run import STEPS


def test_the_validation_loss_is_that_of_the_saved_model(trained):
    """Priced as outputs are, over all batches."""
    loaded = experiment.load_run(str(trained.both), [])
    generator, _ = restore_generator(str(trained.both), loaded, str(STEPS))
    examples = Prepared.open(str(trained.data)).examples("validation")
    outputs = [tuple(generator.target_vocabulary.encode(one.targets[0])) for one in examples]
    scores = generator.score([one.source for one in examples], [[output] for output in outputs])
    labels = sum(len(output) + 1 for output in outputs)
    rows = map(json.loads, (trained.both / "metrics.jsonl").read_text().splitlines())
    (row,) = (row for row in rows if row["step"] == STEPS and "validation/loss" in row)
    assert len(examples) > loaded.batches.rows
    for way in ("l2r", "r2l"):
        nll = -sum(float(score[way][0]) for score in scores) / labels
        np.testing.assert_allclose(row[f"validation/nll_{way}"], nll, rtol=1e-4)
    ways = [row["validation/nll_l2r"], row["validation/nll_r2l"]]
    np.testing.assert_allclose(row["validation/loss"], np.mean(ways), rtol=1e-6)


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """A run that is the second of two processes, with the seed 5; and what it asked data for."""
    asked = {}

    def batches(kind):
        def make(*arguments, **keywords):
            asked[kind] = keywords
            return iter([None])

        return make

    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(pipeline, "training_batches", batches("training"))
    monkeypatch.setattr(pipeline, "validation_batches", batches("validation"))
    monkeypatch.setattr(experiment.Experiment, "make_partitioner", lambda *_: None)
    loaded = experiment.load([trained.gin_file], ["Training.seed = 5"])
    return loop._Run(loaded, Prepared.open(str(trained.data)), tmp_path), asked


def test_seed_and_place_are_the_configs_and_the_processs(run):
    run, asked = run
    place = {"process_index": 1, "process_count": 2}
    assert asked == {"training": {"seed": 5, **place}, "validation": place}
    assert (jax.random.key_data(run.rng) == jax.random.key_data(jax.random.key(5))).all()


class Validated:
    """Stands for what is at work: whatever the parameters, one label of one nat."""

    def for_evaluation(self, batch):
        return batch

    def evaluate_step(self, params, batch):
        self.params = params
        one = np.ones(2, np.float32)
        return LossSums(np.float32(2), one, one, one)


@pytest.mark.parametrize(("average", "validated"), [("average", "average"), (None, "params")])
def test_what_is_validated_is_what_is_searched_with(run, tmp_path, average, validated):
    run, _ = run
    run.partitioner, run.validation = Validated(), lambda: iter([None])
    state = TrainState(step=7, params="params", optimizer=None, ema=average)
    assert run._evaluate(state, 7, SilentReporter(tmp_path, 0, 9)) == 1
    assert run.partitioner.params == validated


class Restored:
    """Stands for checkpoints and for what is at work."""

    def restore_latest(self, shapes, data):
        return type("State", (), {"step": 7}), {"skipped_in_a_row": 2}

    def shapes(self):
        return None


def test_what_was_skipped_before_a_stop_counts_on(run):
    run, _ = run
    run.checkpoints = run.partitioner = Restored()
    state, skipped = run._start()
    assert (state.step, skipped) == (7, 2)
