"""Contract 6: how many devices and microbatches there are changes nothing but rounding."""

import jax
import numpy as np
import pytest

from bidi.data.partner import Partner
from bidi.errors import ConfigError
from bidi.models.config import TransformerConfig
from bidi.models.transformer import Transformer
from bidi.provenance import CompileMeter
from bidi.training.optimizer import OptimizerConfig
from bidi.training.partitioner import Pmap
from bidi.training.step import Trainer
from tests.training.tiny import (
    TOKENS,
    VOCABULARY,
    WAYS,
    Bigram,
    assert_trees_close,
    assert_trees_equal,
    make_batch,
)

ROWS = len(TOKENS)
# Adam divides by what a gradient was: with a small eps, the rounding of a gradient of nearly zero
# would be as large as any other.
OPTIMIZER = OptimizerConfig(0.05, warmup_steps=2, eps=1e-3, weight_decay=0.01, clip_norm=0.5)
RNG = jax.random.key(7)


def make_trainer(model=None, prng_impl="threefry2x32"):
    return Trainer(
        model or Bigram(),
        OPTIMIZER.make(),
        Partner(),
        label_smoothing=0.1,
        ema_decay=0.5,
        prng_impl=prng_impl,
    )


@pytest.fixture(scope="module")
def first():
    """The state before any update, on the host."""
    return jax.device_get(jax.jit(make_trainer().init)(jax.random.key(0), make_batch(0)))


def train(partitioner, state, updates=4):
    """The state after some updates, and the loss of each."""
    state, losses = jax.device_put(state, partitioner.shardings), []
    for number in range(updates):
        batch = partitioner.for_training(make_batch(number + 1))
        state, metrics = partitioner.train_step(state, batch, RNG)
        losses.append(float(metrics["sums"].loss / metrics["sums"].tokens_W.sum()))
    return jax.device_get(state), losses


@pytest.fixture(scope="module")
def alone(first):
    return train(Pmap(make_trainer(), 1, ROWS, devices=1), first)


@pytest.mark.parametrize(
    ("devices", "accumulation"), [(1, 2), (1, 4), (2, 1), (2, 4), (8, 1), (8, 2)]
)
def test_devices_and_accumulation_change_nothing(devices, accumulation, first, alone):
    state, losses = train(Pmap(make_trainer(), accumulation, ROWS, devices), first)
    assert_trees_close(state, alone[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(losses, alone[1], rtol=1e-5)


def test_the_case_is_sharp(first, alone):
    """The test above can fail: updates are large, and a mean of means is something else."""
    moved = jax.tree.map(lambda a, b: abs(a - b).max(), alone[0], first)
    assert min(jax.tree.leaves((moved.params, moved.ema))) > 0.01
    trainer, batch = make_trainer(), make_batch(1)
    evaluate = jax.jit(trainer.evaluate_step)
    divided = Pmap(trainer, 1, ROWS, devices=8).for_evaluation(batch)
    parts = [evaluate(first.params, {k: v[n] for k, v in divided.items()}) for n in range(8)]
    losses, tokens = (
        np.array(x) for x in zip(*((p.loss, p.tokens_W.sum()) for p in parts), strict=True)
    )
    assert abs((losses / tokens).mean() - losses.sum() / tokens.sum()) > 0.01


def test_the_real_model_on_eight_devices():
    config = TransformerConfig(1, 1, 4, 1, 4, dropout=0.0, interaction="layers", future_dropout=0.0)
    trainer = make_trainer(Transformer(config, ways=WAYS, target_vocabulary=VOCABULARY))
    shapes = jax.eval_shape(trainer.init, jax.random.key(0), make_batch(0))
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype("f4"), shapes.params)
    results = [
        train(Pmap(trainer, accumulation, ROWS, devices), state.replace(params=params, ema=params))
        for devices, accumulation in ((1, 1), (8, 2))
    ]
    assert_trees_close(results[1][0].params, results[0][0].params, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(results[1][1], results[0][1], rtol=1e-5)


@pytest.fixture(scope="module")
def two():
    """Two devices, two microbatches, with dropout."""
    return make_two("threefry2x32")


def make_two(prng_impl):
    return Pmap(make_trainer(Bigram(dropout=0.3), prng_impl), 2, ROWS, devices=2)


def test_the_state_is_updated_in_place_and_stays_everywhere(two, first):
    state = jax.device_put(first, two.shardings)
    new, _ = two.train_step(state, two.for_training(make_batch(1)), RNG)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    for leaf in jax.tree.leaves(new):
        assert leaf.sharding.is_equivalent_to(two.shardings, leaf.ndim)
        assert np.isfinite(leaf).all()


def test_steps_compile_once(two, first):
    state = jax.device_put(first, two.shardings)
    counts, meter = [], CompileMeter()
    for number in range(4):
        state, _ = two.train_step(state, two.for_training(make_batch(number)), RNG)
        for params in (state.params, state.ema):
            two.evaluate_step(params, two.for_evaluation(make_batch(number)))
        counts.append(meter.count)
    assert counts[0] <= 2
    assert counts[1:] == counts[:1] * 3


def test_the_same_updates_are_the_same_bit_for_bit(two, first):
    results = [train(two, first) for _ in range(2)]
    assert_trees_equal(*(state for state, _ in results))
    assert results[0][1] == results[1][1]


@pytest.mark.parametrize("prng_impl", ["threefry2x32", "rbg"])
def test_dropout_differs_by_update_device_and_microbatch(prng_impl, first, request):
    """The same rows cost something else wherever they are put: each place has its own masks."""
    same = prng_impl == "threefry2x32"
    two = request.getfixturevalue("two") if same else make_two(prng_impl)
    rows, losses = make_batch(1, tokens=[5] * 4), []
    for step in (0, 1):
        for place in range(4):
            batch = {
                key: np.tile(value, (4, *[1] * (value.ndim - 1))) for key, value in rows.items()
            }
            batch["weights"] *= (np.arange(ROWS) // 4 == place)[:, None, None]
            state = jax.device_put(first.replace(step=np.int32(step)), two.shardings)
            _, metrics = two.train_step(state, two.for_training(batch), RNG)
            losses.append(round(float(metrics["sums"].loss), 3))
    assert len(set(losses)) == 8


def test_validation_sums_do_not_depend_on_the_devices(two, first):
    batch, eight = make_batch(3), Pmap(make_trainer(), 1, ROWS, devices=8)
    results = [
        partitioner.evaluate_step(
            jax.device_put(first.params, partitioner.shardings), partitioner.for_evaluation(batch)
        )
        for partitioner in (two, eight)
    ]
    assert_trees_close(*results, rtol=1e-5)
    np.testing.assert_array_equal(results[0].tokens_W, sum(TOKENS))


def test_every_row_goes_to_one_device_and_microbatch():
    partitioner = Pmap(make_trainer(), 4, ROWS, devices=2)
    batch = {"rows": np.arange(ROWS), "inputs": np.zeros((ROWS, 2, 5))}
    divided = partitioner.for_training(batch)
    assert divided["inputs"].shape == (2, 4, 2, 2, 5)
    assert sorted(divided["rows"].ravel()) == list(range(ROWS))
    assert partitioner.for_evaluation(batch)["inputs"].shape == (2, 8, 2, 5)


def test_rows_that_cannot_be_divided_are_refused():
    with pytest.raises(ConfigError, match=r"Batches.rows = 16 .* 2 devices x Training.accum.* = 3"):
        Pmap(make_trainer(), 3, 16, devices=2)


def test_all_devices_are_the_default():
    assert Pmap(make_trainer(), 1, 16).devices == jax.local_device_count() == 8
