"""Schedules as pure functions of the step; decay, clipping and refused values."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bidi.models.config import TransformerConfig
from bidi.models.transformer import Transformer
from bidi.training.optimizer import OptimizerConfig
from tests.training import tiny
from tests.training.tiny import assert_trees_close

COSINE = OptimizerConfig(0.01, schedule="cosine", warmup_steps=10, decay_steps=110)
INVERSE_SQRT = OptimizerConfig(0.01, schedule="inverse_sqrt", warmup_steps=10)


def test_inverse_square_root_schedule():
    rates = np.array([INVERSE_SQRT.learning_rates()(step) for step in range(0, 1000)])
    steps = np.arange(1, 1000)
    expected = 0.01 * np.minimum(steps / 10, np.sqrt(10 / steps))
    np.testing.assert_allclose(rates[1:], expected, rtol=1e-6)
    assert rates.argmax() == 10
    assert rates[0] > 0  # the first update is not wasted
    np.testing.assert_allclose(rates[40], 0.005, rtol=1e-6)


def test_cosine_schedule():
    rates = np.array([COSINE.learning_rates()(step) for step in range(0, 130)])
    np.testing.assert_allclose(rates[:11], 0.001 * np.arange(11), atol=1e-9)
    expected = 0.005 * (1 + np.cos(np.pi * np.arange(101) / 100))
    np.testing.assert_allclose(rates[10:111], expected, atol=1e-8)
    np.testing.assert_allclose(rates[110:], 0, atol=1e-9)


@pytest.mark.parametrize("config", [COSINE, INVERSE_SQRT])
def test_a_schedule_depends_on_the_step_alone(config):
    schedule = config.learning_rates()
    steps = np.array([77, 3, 0, 77, 10, 3], np.int32)
    one_by_one = np.array([schedule(int(step)) for step in steps])
    np.testing.assert_allclose(jax.jit(jax.vmap(schedule))(steps), one_by_one, rtol=1e-6)


def test_no_warm_up():
    np.testing.assert_allclose(OptimizerConfig(0.01, warmup_steps=0).learning_rates()(0), 0.01)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"schedule": "cosine"}, "decay_steps = None"),
        ({"eps": 0.0}, "eps = 0.0 must be at least 1e-20"),
        ({"schedule": "inverse_sqrt", "decay_steps": 10}, "decay_steps = 10"),
        ({"schedule": "cosine", "warmup_steps": 20, "decay_steps": 20}, "warmup_steps = 20"),
    ],
)
def test_contradictions_are_refused(values, named):
    with pytest.raises(ValueError, match=f"Optimizer.*{named}"):
        OptimizerConfig(**values)


def first_update(config, gradient, params):
    optimizer = config.make()

    @jax.jit
    def update(gradient, params):
        return optimizer.update(gradient, optimizer.init(params), params)[0]

    return update(gradient, params)


def test_weight_decay_moves_matrices_only():
    config = TransformerConfig(
        1, 1, 8, 1, 8, interaction="layers", fusion="gate", own_decoders=True
    )
    model = Transformer(config, ways=2, target_vocabulary=11)
    rows = tiny.make_batch(0, tokens=[1])
    shapes = jax.eval_shape(model.init, jax.random.key(0), rows)["params"]
    params = jax.tree.map(lambda leaf: jnp.ones([1] * leaf.ndim), shapes)
    updates = first_update(
        OptimizerConfig(0.1, warmup_steps=1, weight_decay=0.5),
        jax.tree.map(jnp.zeros_like, params),
        params,
    )
    moved = {}
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        expected = {"kernel": -0.05, "embedding": -0.05, "bias": 0, "scale": 0}[path[-1].key]
        np.testing.assert_allclose(update, expected, rtol=1e-6, err_msg=str(path))
        moved[path[-1].key] = expected
    assert len(moved) == 4


def test_without_weight_decay_it_is_adam():
    rng = np.random.default_rng(0)
    params = {"dense": {"kernel": rng.normal(size=(3, 4)), "bias": rng.normal(size=4)}}
    params = jax.tree.map(np.float32, params)
    config = OptimizerConfig(0.1, warmup_steps=5, clip_norm=0.0)
    ours, theirs = config.make(), optax.adam(config.learning_rates(), b1=0.9, b2=0.98, eps=1e-9)
    our_state, their_state = ours.init(params), theirs.init(params)
    for _ in range(3):
        gradient = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype("f4"), params)
        our_updates, our_state = ours.update(gradient, our_state, params)
        their_updates, their_state = theirs.update(gradient, their_state, params)
        assert_trees_close(our_updates, their_updates, rtol=1e-6)


def test_clipping_scales_the_gradient_as_a_whole():
    # Adam forgets the scale of the first gradient; a great eps keeps it.
    config = OptimizerConfig(1.0, warmup_steps=1, eps=1e6, clip_norm=2.0)
    params = {"dense": {"kernel": jnp.ones((1, 2)), "bias": jnp.ones(1)}}
    gradient = {"dense": {"kernel": jnp.array([[30.0, 0.0]]), "bias": jnp.array([40.0])}}
    clipped = jax.tree.map(lambda leaf: leaf * (2 / 50), gradient)
    small = jax.tree.map(lambda leaf: leaf / 1000, gradient)
    for given, used in ((gradient, clipped), (small, small)):
        unclipped = first_update(
            OptimizerConfig(1.0, "inverse_sqrt", 1, eps=1e6, clip_norm=0), used, params
        )
        assert_trees_close(first_update(config, given, params), unclipped, rtol=1e-5)
        assert jax.tree.leaves(unclipped)[0].any()
