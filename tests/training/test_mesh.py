"""A mesh divides rows, state and layers, and changes nothing but rounding.

Letters: W ways, V vocabulary.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from bidi.data.partner import GOLD, Partner
from bidi.errors import ConfigError
from bidi.models.config import RecurrentConfig, TransformerConfig
from bidi.models.dropout import Dropout
from bidi.models.recurrent import Recurrent
from bidi.models.transformer import Transformer
from bidi.training import chunks
from bidi.training.checkpoints import Checkpoints
from bidi.training.config import MeshConfig
from bidi.training.mesh import Mesh, laid_out
from bidi.training.optimizer import OptimizerConfig
from bidi.training.partitioner import Pmap
from bidi.training.step import Trainer
from tests.training.test_checkpoints import make_data
from tests.training.tiny import TOKENS, WAYS, assert_trees_close, assert_trees_equal, make_batch

ROWS = len(TOKENS)
SHAPES = [
    pytest.param((2, 1, 1), marks=pytest.mark.slow),
    (2, 4, 1),
    (2, 2, 2),
    pytest.param((1, 1, 8), marks=pytest.mark.slow),
]
VOCABULARY = 16
RNG = jax.random.key(7)
# As in test_partitioner: a small eps would make rounding large.
OPTIMIZER = OptimizerConfig(0.05, warmup_steps=2, eps=1e-3, weight_decay=0.01, clip_norm=0.5)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Several chunks in every share of the rows, the last one not full."""
    monkeypatch.setattr(chunks, "CHUNK_TOKENS", 20)


def make_trainer(
    dropout=0.0, model_class=Transformer, partner=GOLD, prng_impl="threefry2x32", **config
):
    tiny = {"encoder_layers": 0, "decoder_layers": 1, "model_size": 16, "heads": 8}
    if model_class is Transformer:
        shape = TransformerConfig(
            **tiny | {"feedforward_size": 16, "interaction": "layers"} | config,
            dropout=dropout,
            future_dropout=dropout,
        )
    else:
        shape = RecurrentConfig(**tiny | {"interaction": "top"} | config, dropout=dropout)
    model = model_class(shape, ways=WAYS, target_vocabulary=VOCABULARY)
    return Trainer(
        model,
        OPTIMIZER.make(),
        partner,
        label_smoothing=0.1,
        ema_decay=0.5,
        prng_impl=prng_impl,
    )


def make_mesh(trainer, shape, accumulation=2, rows=ROWS):
    devices = jax.devices()[: int(np.prod(shape))]
    return Mesh(trainer, MeshConfig(*shape), accumulation, rows, devices)


def train(partitioner, updates, state=None):
    state = partitioner.init(jax.random.key(0)) if state is None else state
    losses = []
    for number in range(updates):
        batch = partitioner.for_training(make_batch(number % 5 + 1))
        state, metrics = partitioner.train_step(state, batch, RNG)
        losses.append(float(metrics["sums"].loss / metrics["sums"].tokens_W.sum()))
    return state, losses


# Made once, since each compiles its own steps.
@pytest.fixture(scope="module")
def one():
    return Pmap(make_trainer(), 2, ROWS, devices=1)


@pytest.fixture(scope="module")
def mesh_of():
    """The mesh of a shape."""
    trainer = make_trainer()
    return functools.cache(lambda shape: make_mesh(trainer, shape))


@pytest.fixture(scope="module")
def alone(one):
    """After 20 updates by `Pmap` on one device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "CHUNK_TOKENS", 20)
        state, losses = train(one, 20)
    return jax.device_get(state), losses


@pytest.mark.parametrize("shape", SHAPES)
def test_the_mesh_changes_nothing(shape, mesh_of, alone):
    state, losses = train(mesh_of(shape), 20)
    np.testing.assert_allclose(losses, alone[1], rtol=1e-4)
    assert losses[-1] < losses[0] - 0.3
    assert_trees_close(jax.device_get(state), alone[0], rtol=2e-3, atol=2e-4)


def test_dropout_does_not_depend_on_the_mesh(alone):
    """Threefry draws for the whole batch, wherever its rows are."""
    results = [
        train(make_mesh(make_trainer(dropout=0.3), shape), 2) for shape in [(8, 1, 1), (2, 2, 2)]
    ]
    assert_trees_close(*(jax.device_get(state) for state, _ in results), rtol=1e-3, atol=1e-4)
    assert abs(results[0][1][0] - alone[1][0]) > 0.01


def test_each_share_of_the_rows_draws_its_own_bits_by_rbg(alone):
    """Rows that are the same have other masks, in one share or two; tensor divides none of them."""
    mesh = make_mesh(
        make_trainer(dropout=0.3, prng_impl="rbg", own_decoders=True, remat=True), (2, 2, 2), 1
    )
    key = jax.random.key(3, impl="rbg")

    def draw(x):
        return Dropout(0.5, deterministic=False).apply({}, x, rngs={"dropout": key})

    kept = jax.jit(mesh._on_mesh(draw))(jax.device_put(np.ones((8, 500), np.float32), mesh._rows))
    assert {shard.data.shape for shard in kept.addressable_shards} == {(2, 500)}
    agree = (np.asarray(kept)[:, None] == np.asarray(kept)[None]).mean(axis=-1)
    np.testing.assert_allclose(agree[~np.eye(8, dtype=bool)], 0.5, atol=0.1)
    assert set(np.unique(kept)) == {0.0, 2.0}
    _, losses = train(mesh, 1)
    assert np.isfinite(losses).all()
    assert abs(losses[0] - alone[1][0]) > 0.01


def test_the_state_is_divided_and_checkpoints_go_anywhere(mesh_of, one, tmp_path):
    mesh = mesh_of((2, 2, 2))
    state, _ = train(mesh, 1)
    for tree in (state.params, state.ema, state.optimizer[1][0].mu, state.optimizer[1][0].nu):
        kernel = tree["decoder"]["layers_0"]["feedforward"]["in"]["kernel"]
        assert kernel.shape == (16, 16)
        assert {shard.data.shape for shard in kernel.addressable_shards} == {(8, 8)}
    whole = sum(leaf.size for leaf in jax.tree.leaves(state))
    here = sum(leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(state))
    assert here < 0.35 * whole
    checkpoints = Checkpoints(tmp_path, keep=9)
    try:
        before = jax.device_get(state)
        for step, partitioner in enumerate((one, mesh_of((1, 2, 1)), mesh, one), 1):
            checkpoints.save(state.replace(step=step), make_data(), {}, None)
            state, _ = checkpoints.restore_latest(partitioner.shapes(), make_data())
            assert_trees_equal(jax.device_get(state).params, before.params)
            assert_trees_equal(jax.device_get(state).optimizer, before.optimizer)
        state, _ = train(one, 1, state)
        assert int(state.step) == 5
    finally:
        checkpoints.close()


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device of a TPU slice, as far as its place goes."""

    id: int
    coords: tuple[int, int, int]
    process_index: int
    device_kind: str
    platform: str = "tpu"
    core_on_chip: int = 0


@pytest.mark.parametrize("kind", ["TPU v5 lite", "TPU v6 lite"])
@pytest.mark.parametrize("tensor", [1, 2, 4])
def test_those_that_divide_a_layer_are_in_one_process(kind, tensor):
    """Of a slice of 4 x 4 chips on hosts of 2 x 2."""
    chips = [
        Chip(4 * y + x, (x, y, 0), 2 * (y // 2) + x // 2, kind) for y in range(4) for x in range(4)
    ]
    laid = laid_out(chips, (16 // tensor, 1, tensor))
    assert {chip.id for chip in laid.flat} == set(range(16))
    for group in laid.reshape(-1, tensor):
        assert len({chip.process_index for chip in group}) == 1


@pytest.mark.parametrize(
    "model",
    [
        {
            **{"own_decoders": True, "copy_prior": True, "norm": "post", "encoder_layers": 1},
            **{"interaction": "top", "tied_embeddings": False},
            "partner": Partner(kind="predicted"),
        },
        {"model_class": Recurrent, "copy_prior": True, "encoder_layers": 1},
    ],
)
def test_every_model(model):
    trainer = make_trainer(**model)
    alone, divided = Pmap(trainer, 1, ROWS, devices=1), make_mesh(trainer, (2, 2, 2), 1)
    results = [train(partitioner, 2) for partitioner in (alone, divided)]
    assert_trees_close(*(jax.device_get(state) for state, _ in results), rtol=2e-3, atol=2e-4)
    np.testing.assert_allclose(*(losses for _, losses in results), rtol=1e-4)
    batch = make_batch(9)
    sums = [
        partitioner.evaluate_step(state.params, partitioner.for_evaluation(batch))
        for partitioner, (state, _) in zip((alone, divided), results, strict=True)
    ]
    assert_trees_close(*map(jax.device_get, sums), rtol=1e-3)


@pytest.mark.parametrize(
    ("shape", "config", "message"),
    [
        ((3, -1, 1), {}, "Mesh.data = 3, Mesh.fsdp = -1, Mesh.tensor = 1 .* 8 devices"),
        ((2, 2, 1), {}, "Mesh.data = 2, Mesh.fsdp = 2, Mesh.tensor = 1 .* 8 devices"),
        ((-1, 1, 8), {"heads": 4}, "Mesh.tensor = 8 .* Transformer.heads = 4"),
        ((-1, 1, 8), {"feedforward_size": 12}, "Mesh.tensor = 8 .* 'feedforward' .* 12"),
        ((-1, 1, 8), {"accumulation": 3}, "Batches.rows = 16 .* Mesh.data = 1 .*accumulation = 3"),
        ((1, 8, 1), {"model_size": 12, "heads": 1}, "Mesh.fsdp = 8 .* 'embed' .* 12"),
    ],
)
def test_what_cannot_be_divided_is_named(shape, config, message):
    accumulation = config.pop("accumulation", 1)
    with pytest.raises(ConfigError, match=message):
        Mesh(make_trainer(**config), MeshConfig(*shape), accumulation, ROWS)


def test_two_rests_are_refused():
    with pytest.raises(ValueError, match=r"Mesh.data = -1, Mesh.fsdp = -1"):
        MeshConfig(-1, -1, 1)
