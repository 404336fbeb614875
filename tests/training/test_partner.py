"""Predicted partners: both passes by hand, what is mixed, and when.

B batch, P pairs, W ways, T target steps, N examples or tokens, D model, V vocabulary.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bidi.data.partner import Partner
from bidi.data.pipeline import BatchConfig, validation_batches
from bidi.data.streams import Streams
from bidi.models.output import Output, Prior, project
from bidi.models.transformer import Transformer
from bidi.tokens import EOS, FIRST_TEXT_ID
from bidi.training import chunks
from bidi.training import partner as partner_module
from bidi.training.partitioner import Pmap
from bidi.training.partner import (
    Update,
    beside_guesses,
    guess,
    inputs_of,
    mixed,
    share_of_guesses,
)
from bidi.training.step import Trainer, TrainState
from tests.models import tiny
from tests.training.tiny import assert_trees_close, assert_trees_equal

# With these, interaction would change what is guessed.
LAYERS = {"interaction": "layers", "fusion": "concat", "own_decoders": True}
TOP = {"interaction": "top", "fusion": "concat", "norm": "post", "tied_embeddings": False}
RECURRENT = {"interaction": "top", "recurrent": True}
STREAMS = Streams("both")
PAIRS = tiny.random_pairs(9)
GOLD, PREDICTED = Partner("gold"), Partner("predicted")


def read(pack, rows, streams=STREAMS):
    """All pairs in one batch."""
    config = BatchConfig(rows=rows, source_length=14, target_length=14, pack=pack)
    (batch,) = validation_batches(PAIRS, streams, config)
    return batch


PACKED, ALONE = read(pack=True, rows=5), read(pack=False, rows=9)


@functools.partial(jax.jit, static_argnames=("model", "partner"))
def logits_beside_guesses(model, params, batch, partner=PREDICTED, update=None):
    return project(*beside_guesses(partner, model, params, batch, update))


def examples(batch):
    """Row, steps and a name of each example of a batch."""
    for row, segments_T in enumerate(batch["segments"][:, 0]):
        for segment in range(1, segments_T.max() + 1):
            steps = np.flatnonzero(segments_T == segment)
            source = batch["source"][row, batch["source_segments"][row] == segment]
            yield row, steps, (tuple(source), tuple(batch["labels"][row, 0, steps]))


def test_there_are_borders_within_rows():
    assert (PACKED["segments"] > 1).sum() > 10
    assert len(list(examples(PACKED))) == len(list(examples(ALONE))) == len(PAIRS)


@pytest.mark.parametrize("config", [LAYERS, TOP, RECURRENT], ids=["layers", "top", "recurrent"])
def test_two_passes_by_hand(config):
    model = tiny.make_model(**config)
    params = tiny.random_params(model)
    streams = tuple(PACKED[key][:, None] for key in ("inputs", "segments", "positions"))
    first = tiny.decode(model, params, PACKED, streams, interact=False)
    shown = PACKED["inputs"].copy()
    for row, steps, _ in examples(PACKED):
        for way in range(2):
            for step, following in itertools.pairwise(steps):
                text = first[row, 0, way, step, FIRST_TEXT_ID:]
                shown[row, way, following] = FIRST_TEXT_ID + np.argmax(text)
    assert 0.5 < (shown != PACKED["inputs"])[PACKED["positions"] > 0].mean() < 1
    own = PACKED["inputs"]
    pairs = np.stack(
        [np.stack([own[:, 0], shown[:, 1]], 1), np.stack([shown[:, 0], own[:, 1]], 1)], 1
    )
    second = tiny.decode(
        model, params, PACKED, (pairs, *(np.repeat(x, 2, 1) for x in streams[1:])), interact=True
    )
    found = logits_beside_guesses(model, params, PACKED)
    for way in range(2):
        np.testing.assert_allclose(found[:, way], second[:, way, way], atol=1e-4)


@pytest.mark.parametrize("config", [LAYERS, RECURRENT], ids=["layers", "recurrent"])
def test_packing_changes_no_prediction(config):
    model = tiny.make_model(**config, joint=True, copy_prior=True)
    params = tiny.random_params(model)
    by_example = []
    for batch in (PACKED, ALONE):
        logits = np.asarray(logits_beside_guesses(model, params, batch))
        by_example.append({name: logits[row][:, steps] for row, steps, name in examples(batch)})
    packed, alone = by_example
    assert packed.keys() == alone.keys()
    assert len(packed) == len(PAIRS)
    for name, logits_WNV in alone.items():
        np.testing.assert_allclose(packed[name], logits_WNV, atol=1e-4)


def test_guesses_are_the_likeliest_text_whatever_the_chunks(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_TOKENS", 7)
    rng = np.random.default_rng(0)
    states = rng.standard_normal((2, 2, 5, 4)).astype(np.float32)
    table = rng.standard_normal((9, 4)).astype(np.float32)
    table[EOS] = 100 * states[0, 0, 0]  # the likeliest of all in one place at least
    logits = states @ table.T
    found = guess(states, Output(table))
    assert found.dtype == np.int32
    assert (logits.argmax(-1) < FIRST_TEXT_ID).any()
    np.testing.assert_array_equal(found, FIRST_TEXT_ID + logits[..., FIRST_TEXT_ID:].argmax(-1))


def test_guesses_are_likelier_where_the_source_has_them(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_TOKENS", 7)
    rng = np.random.default_rng(0)
    states = rng.standard_normal((2, 2, 5, 4)).astype(np.float32)
    table, scale, bias = (rng.standard_normal(shape) for shape in ((9, 4), 9, 9))
    occurs, example = rng.random((3, 9)) < 0.5, rng.integers(3, size=(2, 2, 5))
    logits = states @ table.T + 5 * (bias + occurs[example] * scale)
    prior = Prior(*map(jnp.array, (5 * scale, 5 * bias, occurs, example)))
    found = guess(states, Output(jnp.array(table), prior))
    np.testing.assert_array_equal(found, FIRST_TEXT_ID + logits[..., FIRST_TEXT_ID:].argmax(-1))
    assert (found != guess(states, Output(jnp.array(table)))).any()


@pytest.mark.parametrize("layout", ["whole", "halves"])
def test_the_labels_make_the_inputs(layout):
    """Gold labels give gold inputs: the start marker stays, the end marker goes, also in rows."""
    batch = read(pack=True, rows=5, streams=Streams("both", layout=layout))
    np.testing.assert_array_equal(inputs_of(batch["labels"], batch), batch["inputs"])


# Gold is told from guesses and from corrupted tokens by its numbers.
LARGE = 10_000
GUESSES = inputs_of(np.full_like(PACKED["inputs"], LARGE + 1), PACKED)
IS_TEXT = (PACKED["positions"] > 0) & (PACKED["segments"] > 0)
mix = jax.jit(mixed, static_argnames="vocabulary")


def test_all_guesses_show_no_gold():
    shown = mix(GUESSES, PACKED, 1.0, 0.0, tiny.TARGETS, jax.random.key(0))
    assert (shown[IS_TEXT] == LARGE + 1).all()
    np.testing.assert_array_equal(shown[~IS_TEXT], PACKED["inputs"][~IS_TEXT])


def test_no_guesses_show_gold():
    shown = mix(GUESSES, PACKED, 0.0, 0.0, tiny.TARGETS, jax.random.key(0))
    np.testing.assert_array_equal(shown, PACKED["inputs"])


def test_shares_of_guesses_and_of_corrupted_tokens():
    batch = {key: np.tile(PACKED[key], (80, 1, 1)) for key in ("segments", "positions", "inputs")}
    is_text, guesses = np.tile(IS_TEXT, (80, 1, 1)), np.tile(GUESSES, (80, 1, 1))
    batch["inputs"] = np.where(is_text, LARGE, batch["inputs"])
    shown = np.asarray(mix(guesses, batch, 0.3, 0.2, tiny.TARGETS, jax.random.key(1)))
    np.testing.assert_array_equal(shown[~is_text], batch["inputs"][~is_text])
    text = shown[is_text]
    assert len(text) > 4000
    shares = [(text == LARGE).mean(), (text == LARGE + 1).mean(), (text < LARGE).mean()]
    np.testing.assert_allclose(shares, [0.7 * 0.8, 0.3 * 0.8, 0.2], atol=0.025)
    # All text is as likely, and no marker comes.
    values, counts = np.unique(text[text < LARGE], return_counts=True)
    np.testing.assert_array_equal(values, range(FIRST_TEXT_ID, tiny.TARGETS))
    np.testing.assert_allclose(counts / counts.sum(), 1 / len(values), atol=0.04)


@pytest.mark.parametrize(
    ("first", "last", "shares"),
    [
        (10, 30, {0: 0, 10: 0, 15: 0.25, 20: 0.5, 29: 0.95, 30: 1, 31: 1, 10**6: 1}),
        (0, 4, {0: 0, 1: 0.25, 4: 1, 5: 1}),
        (0, 0, {0: 1, 1: 1, 7: 1}),
        (5, 5, {0: 0, 4: 0, 5: 1, 6: 1}),
    ],
)
def test_the_schedule(first, last, shares):
    partner = Partner("predicted", predicted_from=first, predicted_until=last)
    for updates, share in shares.items():
        found = share_of_guesses(partner, jnp.int32(updates))
        np.testing.assert_allclose(found, share, rtol=1e-6)


# From here on as small as it can be: these tests compile whole updates.
SMALL = {"decoder_layers": 1, "interaction": "layers", "own_decoders": True}


def make_trainer(partner, dropout):
    model = tiny.make_model(dropout=dropout, future_dropout=dropout, **SMALL)
    return Trainer(model, optax.sgd(0.1), partner, label_smoothing=0.1, ema_decay=0.0)


def first_state(trainer, step=0):
    params = tiny.random_params(trainer.model)
    return TrainState(jnp.int32(step), params, trainer.optimizer.init(params), ema=None)


def test_an_update_mixes_by_its_number_and_validation_does_not(monkeypatch):
    """What is shown, in place of what is made of it; the sources are read without dropout."""
    start = Transformer.start
    monkeypatch.setattr(
        Transformer,
        "start",
        lambda self, batch, train, examples: start(self, batch, False, examples),
    )
    monkeypatch.setattr(
        Transformer, "unprojected_beside", lambda self, source, batch, shown, train: shown
    )
    partner = Partner("predicted", predicted_from=10, predicted_until=30, corrupted=0.2)

    @functools.partial(jax.jit, static_argnames="dropout")
    def of_params(params, update, dropout):
        model = make_trainer(partner, dropout).model
        return beside_guesses(partner, model, params, PACKED, update)

    params = tiny.random_params(make_trainer(partner, 0.0).model)

    def shown(seed, number, dropout=0.0):
        update = Update(jax.random.key(seed), jnp.int32(number))
        return np.asarray(of_params(params, update, dropout))

    # In validation there is no dropout, nothing is corrupted, and all are guesses.
    guesses, gold = np.asarray(of_params(params, None, 0.5)), PACKED["inputs"]
    wrong = guesses != gold
    assert wrong.sum() > 20
    for number, share in ((5, 0), (20, 0.5), (30, 1)):
        found = shown(0, number)
        assert abs((found == guesses)[wrong].mean() - 0.8 * share) < 0.2
        assert abs((found == gold)[wrong].mean() - 0.8 * (1 - share)) < 0.2
    # Guesses are made with dropout, and all depends on the rng.
    assert (shown(0, 30, dropout=0.5) != shown(0, 30)).any()
    assert (shown(1, 30) != shown(0, 30)).any()
    np.testing.assert_array_equal(shown(1, 20, dropout=0.5), shown(1, 20, dropout=0.5))


def test_every_pass_and_the_mixing_draw_by_keys_of_their_own(monkeypatch):
    model, update = tiny.make_model(**LAYERS, dropout=0.5), Update(jax.random.key(3), jnp.int32(7))
    params, fold_in, numbers = tiny.random_params(model), jax.random.fold_in, []

    def noted(key, number):
        if key is update.rng:
            numbers.append(number)
        return fold_in(key, number)

    monkeypatch.setattr(jax.random, "fold_in", noted)
    jax.eval_shape(lambda *given: beside_guesses(PREDICTED, model, *given, update), params, PACKED)
    assert len(set(numbers)) == len(numbers) == 4


def test_no_gradient_comes_by_guesses(monkeypatch):
    @jax.custom_jvp
    def never_differentiated(states):
        return states

    @never_differentiated.defjvp
    def _(primals, tangents):
        raise AssertionError(f"{primals} has a gradient")

    def watched(states_BWTD, output):
        return guess(never_differentiated(states_BWTD), never_differentiated(output))

    monkeypatch.setattr(partner_module, "guess", watched)
    model = make_trainer(PREDICTED, 0.0).model

    def total(params):
        return project(*beside_guesses(PREDICTED, model, params, PACKED, None)).sum()

    jax.make_jaxpr(jax.grad(total))(tiny.random_params(model))


def test_before_the_first_guess_an_update_is_that_of_gold_partners():
    @functools.partial(jax.jit, static_argnames="partner")
    def update(state, partner):
        batches = {key: value[None] for key, value in PACKED.items()}
        return make_trainer(partner, 0.0).train_step(state, batches, jax.random.key(1))

    early, late = (first_state(make_trainer(PREDICTED, 0.0), step) for step in (3, 4))
    partner = Partner("predicted", predicted_from=4, predicted_until=4)
    (gold, gold_metrics), (found, metrics) = update(early, GOLD), update(early, partner)
    assert_trees_close(metrics, gold_metrics, rtol=1e-5)
    assert_trees_close(found.params, gold.params, rtol=1e-3, atol=1e-5)
    _, metrics = update(late, partner)
    assert abs(metrics["sums"].loss - gold_metrics["sums"].loss) > 0.1


def test_an_update_on_devices_depends_on_state_and_seed_alone():
    """So a resumed run makes it again, bit for bit."""
    partner = Partner("predicted", predicted_from=1, predicted_until=5, corrupted=0.1)
    trainer = make_trainer(partner, 0.2)
    partitioner = Pmap(trainer, accumulation=2, rows=8, devices=2)
    batch = read(pack=True, rows=8)

    def update(state):
        state, metrics = partitioner.train_step(
            jax.device_put(state, partitioner.shardings),
            partitioner.for_training(batch),
            jax.random.key(3),
        )
        return jax.device_get((state, metrics["sums"]))

    history = [(first_state(trainer), None)]
    for _ in range(4):
        history.append(update(history[-1][0]))
    assert history[-1][1].loss < history[1][1].loss
    assert_trees_equal(update(history[2][0]), history[3])
    # Validation divides its rows too.
    params = history[-1][0].params
    sums = partitioner.evaluate_step(params, partitioner.for_evaluation(batch))
    whole = jax.jit(trainer.evaluate_step)(params, batch)
    assert_trees_close(jax.device_get(sums), jax.device_get(whole), rtol=1e-5)
