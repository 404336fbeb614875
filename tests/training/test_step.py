"""One update: its gradient, its sums, its moving average."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bidi.data.partner import Partner
from bidi.training.step import Trainer
from tests.training.tiny import (
    LENGTH,
    Bigram,
    assert_trees_close,
    assert_trees_equal,
    make_batch,
)

SMOOTHING, EMA_DECAY = 0.1, 0.3
RNG = jax.random.key(5)


def stack(*batches):
    """Microbatches of one update."""
    return {key: np.stack([batch[key] for batch in batches]) for key in batches[0]}


@jax.jit
@jax.value_and_grad
def mean_loss(params, batch):
    """What the whole batch costs by definition: sum(loss) / sum(tokens)."""
    logits = Bigram().apply({"params": params}, batch)
    labels = optax.smooth_labels(jax.nn.one_hot(batch["labels"], logits.shape[-1]), SMOOTHING)
    losses = optax.softmax_cross_entropy(logits, labels) * batch["weights"]
    return losses.sum() / batch["weights"].sum()


@pytest.fixture(scope="module")
def descent():
    """A compiled step of gradient descent with rate 1, and its first state."""
    trainer = Trainer(Bigram(), optax.sgd(1.0), Partner(), SMOOTHING, EMA_DECAY)
    return jax.jit(trainer.train_step), jax.jit(trainer.init)(jax.random.key(0), make_batch(0))


def test_an_update_descends_the_mean_over_all_tokens(descent):
    step, state = descent
    batches = [make_batch(1, tokens=[LENGTH] * 4), make_batch(2, tokens=[1, 0, 1, 0])]
    whole = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
    loss, gradient = mean_loss(state.params, whole)
    new, metrics = step(state, stack(*batches), RNG)
    expected = jax.tree.map(np.subtract, state.params, gradient)
    assert_trees_close(new.params, expected, rtol=1e-5, atol=1e-6)
    sums = metrics["sums"]
    np.testing.assert_allclose(sums.loss / sums.tokens_W.sum(), loss, rtol=1e-5)
    np.testing.assert_array_equal(sums.tokens_W, [4 * LENGTH + 2] * 2)
    norm = np.sqrt(sum((np.asarray(leaf) ** 2).sum() for leaf in jax.tree.leaves(gradient)))
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-5)
    assert new.step == 1
    # The case is sharp: the mean of the microbatches' means is something else.
    wrong = [
        mean_loss(state.params, {k: np.tile(v, (2, *[1] * (v.ndim - 1))) for k, v in b.items()})[1]
        for b in batches
    ]
    difference = jax.tree.map(
        lambda g, *parts: abs(g - np.mean(parts, axis=0)).max(), gradient, *wrong
    )
    assert max(jax.tree.leaves(difference)) > 0.01


def test_a_batch_without_tokens_changes_nothing(descent):
    step, state = descent
    new, metrics = step(state, stack(*[make_batch(1, tokens=[0] * 4)] * 2), RNG)
    assert_trees_equal(new.params, state.params)
    assert metrics["gradient_norm"] == 0
    assert metrics["sums"].loss == 0


def test_the_moving_average_follows_its_definition(descent):
    step, state = descent
    assert_trees_equal(state.ema, state.params)
    expected = state.params
    for number in range(1, 7):
        batches = [make_batch(number, tokens=[2] * 4), make_batch(-number % 97, tokens=[5] * 4)]
        state, _ = step(state, stack(*batches), RNG)
        decay = min(EMA_DECAY, (1 + number) / (10 + number))
        expected = jax.tree.map(
            lambda old, new, decay=decay: decay * np.asarray(old) + (1 - decay) * new,
            expected,
            state.params,
        )
    assert (1 + number) / (10 + number) > EMA_DECAY > 2 / 11  # both sides of the minimum
    assert_trees_close(state.ema, expected, rtol=1e-5, atol=1e-6)


def test_no_moving_average_is_no_leaf():
    trainer = Trainer(Bigram(), optax.sgd(1.0), Partner(), SMOOTHING, 0.0)
    assert jax.eval_shape(trainer.init, jax.random.key(0), make_batch(0)).ema is None


def test_evaluation_has_no_dropout_and_no_smoothing(descent):
    _, state = descent
    batch = make_batch(1)
    trainer = Trainer(Bigram(dropout=0.5), optax.sgd(1.0), Partner(), SMOOTHING, 0.0)
    sums = jax.jit(trainer.evaluate_step)(state.params, batch)

    @jax.jit
    def nll(params):
        log_probs = jax.nn.log_softmax(Bigram().apply({"params": params}, batch))
        return -jnp.take_along_axis(log_probs, batch["labels"][..., None], axis=-1)[..., 0]

    np.testing.assert_allclose(
        sums.nll_W, (nll(state.params) * batch["weights"]).sum(axis=(0, 2)), rtol=1e-5
    )
    np.testing.assert_allclose(sums.loss, sums.nll_W.sum(), rtol=1e-6)


def test_an_update_without_a_number_changes_nothing_but_the_step_if_skipped(descent):
    state = descent[1]
    embedding = state.params["Embed_0"]["embedding"].at[7].set(jnp.nan)
    params = {**state.params, "Embed_0": {"embedding": embedding}}
    trainer = Trainer(Bigram(), optax.adam(1.0), Partner(), SMOOTHING, EMA_DECAY, True)
    state = jax.jit(trainer.init)(jax.random.key(0), make_batch(0))
    state = trainer.with_params(state, params)
    step = jax.jit(trainer.train_step)
    good = [make_batch(seed, tokens=[2] * 4) for seed in (1, 2)]
    for batch in good:
        for key in ("source", "inputs"):
            batch[key][batch[key] == 7] = 0
    bad = {key: value.copy() for key, value in good[1].items()}
    bad["source"][2, 5] = 7
    new, metrics = step(state, stack(good[0], bad), RNG)
    assert np.isnan(metrics["sums"].loss)
    assert new.step == 1
    for name in ("params", "optimizer", "ema"):
        assert_trees_equal(getattr(new, name), getattr(state, name))
    assert metrics["suspects"].rows == 1
    np.testing.assert_array_equal(metrics["suspects"].source, [np.zeros(LENGTH), bad["source"][2]])
    # The next one is made.
    newer, metrics = step(new, stack(*good), RNG)
    assert newer.step == 2
    assert np.isfinite(metrics["sums"].loss)
    assert metrics["suspects"].rows == 0
    assert (newer.params["output"] != new.params["output"]).all()


class Steep(Bigram):
    """Its gradient is infinite where it begins."""

    @nn.compact
    def unprojected(self, batch, train=False):
        states_BWTD, output = super().unprojected(batch, train)
        return states_BWTD * (1 + jnp.sqrt(self.param("root", nn.initializers.zeros, ()))), output


def test_a_gradient_that_is_no_number_is_skipped_whatever_the_loss():
    trainer = Trainer(Steep(), optax.adam(1.0), Partner(), SMOOTHING, EMA_DECAY, True)
    state = jax.jit(trainer.init)(jax.random.key(0), make_batch(0))
    new, metrics = jax.jit(trainer.train_step)(state, stack(make_batch(1)), RNG)
    assert np.isfinite(metrics["sums"].loss)
    assert not np.isfinite(metrics["gradient_norm"])
    assert new.step == 1
    for name in ("params", "optimizer", "ema"):
        assert_trees_equal(getattr(new, name), getattr(state, name))


def test_what_draws_the_bits_changes_them_and_nothing_else():
    states, losses = [], []
    for dropout in (0.5, 0.0):
        for prng_impl in ("threefry2x32", "rbg"):
            trainer = Trainer(
                Bigram(dropout), optax.sgd(1.0), Partner(), SMOOTHING, 0.0, prng_impl=prng_impl
            )
            states.append(jax.jit(trainer.init)(RNG, make_batch(0)))
            _, metrics = jax.jit(trainer.train_step)(states[-1], stack(make_batch(1)), RNG)
            losses.append(float(metrics["sums"].loss))
    for state in states[1:]:
        assert_trees_equal(state, states[0])
    assert losses[0] != losses[1]
    assert losses[2] == losses[3]


def test_the_bits_of_rbg_are_independent():
    """Half of a mask's places agree with another update's, way's or row's, and half are dropped."""
    trainer = Trainer(Bigram(0.5), optax.sgd(1.0), Partner(), SMOOTHING, 0.0, prng_impl="rbg")
    masks = np.stack(
        [
            jax.random.bernoulli(trainer._drawing(jax.random.fold_in(RNG, step)), 0.5, (4, 2, 999))
            for step in range(3)
        ]
    ).reshape(-1, 999)
    agree = (masks[:, None] == masks[None]).mean(axis=-1)
    np.testing.assert_allclose(agree[~np.eye(len(masks), dtype=bool)], 0.5, atol=0.08)
    np.testing.assert_allclose(masks.mean(axis=-1), 0.5, atol=0.08)
