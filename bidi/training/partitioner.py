"""How a step is laid over devices: what is asked of a partitioner; data parallel by `jax.pmap`.

By `jax.pmap`, the state keeps its own shape (no leading device axis) and is the same on every
device, so that one state serves training, checkpoints and search. Across processes `jax.pmap`
cannot update such a state in place; there `jax.shard_map`, which it is made of, does the same.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from bidi.errors import ConfigError
from bidi.training.step import Trainer, TrainState

AXIS = "devices"


class Partitioner:
    """Runs the steps of a `Trainer` on devices.

    Attributes:
        shardings: where a state lies: a `TrainState` of shardings, or one for all of it.
        leading: the axes that stand for B where `train_step` takes a batch; -1 is the rest.
        train_step: takes a state, what `for_training` made of a batch, and the run's key; returns
            the state after the update, in the place of the former, and metrics, see
            `Trainer.train_step`.
        evaluate_step: takes parameters and what `for_evaluation` made of a batch, see
            `Trainer.evaluate_step`.
    """

    shardings: Any
    leading: tuple[int, ...]
    train_step: Any
    evaluate_step: Callable[..., Any]

    def __init__(self, trainer: Trainer):
        """Of the steps of this trainer."""
        self._trainer = trainer

    def init(self, rng: jax.Array) -> TrainState:
        """A fresh state, which was never anywhere but where the steps run: they compile once."""
        init = jax.jit(self._trainer.init, out_shardings=self.shardings)
        return init(rng, self._trainer.model.smallest_batch())

    def shapes(self) -> TrainState:
        """Of a state, where the steps run."""
        shapes, shardings = self._abstract_state(), self.shardings
        if not isinstance(shardings, TrainState):
            shardings = jax.tree.map(lambda _: shardings, shapes)
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            shardings,
        )

    def lower(self, batch: dict[str, np.ndarray]) -> jax.stages.Lowered:
        """`train_step` for such batches [B, ...] of all processes, on devices that may be absent.

        Of `batch` only shapes count.
        """
        laid = jax.eval_shape(functools.partial(divide, shape=self.leading), batch)
        return self.train_step.lower(self.shapes(), laid, jax.eval_shape(lambda: jax.random.key(0)))

    def for_training(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """A batch [B, ...] of this process, laid as `train_step` takes it."""
        raise NotImplementedError

    def for_evaluation(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """A batch [B, ...] of this process, laid as `evaluate_step` takes it."""
        raise NotImplementedError

    def _abstract_state(self) -> TrainState:
        batch = self._trainer.model.smallest_batch()
        return jax.eval_shape(self._trainer.init, jax.random.key(0), batch)


class Pmap(Partitioner):
    """Runs the steps of a `Trainer` on the devices of all processes, the batch divided over them.

    Attributes:
        devices: how many, over all processes.
        shardings: of a state, which is whole on every device.
    """

    def __init__(
        self,
        trainer: Trainer,
        accumulation: int,
        rows: int,
        devices: int | Sequence[jax.Device] | None = None,
    ):
        """Compiles nothing yet.

        Args:
            trainer: whose steps are run.
            accumulation: microbatches of an update.
            rows: of a batch, over all devices and microbatches.
            devices: how many to use, or which; all by default. Several processes use all.

        Raises:
            ConfigError: the rows cannot be divided.
        """
        super().__init__(trainer)
        used: Sequence[jax.Device] = (
            jax.devices()[:devices] if devices is None or isinstance(devices, int) else devices
        )
        self.devices = len(used)
        self.leading = (self.devices // jax.process_count(), accumulation, -1)
        if rows % (self.devices * accumulation):
            raise ConfigError(
                f"Batches.rows = {rows} cannot be divided over {self.devices} devices x "
                f"Training.accumulation = {accumulation}"
            )
        mesh = jax.sharding.Mesh(np.array(used), (AXIS,))
        self.shardings = jax.sharding.NamedSharding(mesh, P())
        self._divided = jax.sharding.NamedSharding(mesh, P(AXIS))
        train_step = functools.partial(trainer.train_step, axis=AXIS)
        evaluate_step = functools.partial(trainer.evaluate_step, axis=AXIS)
        # `state` goes in and comes out unmapped, in place.
        if jax.process_count() > 1:
            self.train_step = jax.jit(
                _shard_mapped(train_step, mesh, in_specs=(P(), P(AXIS), P())), donate_argnums=0
            )
            self.evaluate_step = jax.jit(
                _shard_mapped(evaluate_step, mesh, in_specs=(P(), P(AXIS)))
            )
            return
        self.train_step = jax.pmap(
            train_step,
            axis_name=AXIS,
            in_axes=(None, 0, None),
            out_axes=(None, None),
            donate_argnums=0,
            devices=used,
        )
        self.evaluate_step = jax.pmap(
            evaluate_step, axis_name=AXIS, in_axes=(None, 0), out_axes=None, devices=used
        )

    def for_training(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """[B, ...] of this process -> [devices, accumulation, rows of a microbatch, ...]."""
        return self._put(divide(batch, self.leading))

    def for_evaluation(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """[B, ...] of this process -> [devices, rows of a device, ...]."""
        return self._put(divide(batch, (self.leading[0], -1)))

    def _put(self, mine: dict[str, np.ndarray]) -> dict[str, Any]:
        """What is this process's, of what is all processes'."""
        if jax.process_count() == 1:
            return mine
        return {
            key: jax.make_array_from_process_local_data(self._divided, value)
            for key, value in mine.items()
        }


def divide(batch: dict[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    """[B, ...] -> [*shape, ...]."""
    return {key: value.reshape(*shape, *value.shape[1:]) for key, value in batch.items()}


def _shard_mapped(
    step: Callable[..., Any], mesh: jax.sharding.Mesh, in_specs: tuple[P, P] | tuple[P, P, P]
) -> Callable[..., Any]:
    """A step of a state, a batch with a leading axis of devices, and more; what it gives is P()."""

    def on_device(state: Any, batch: dict[str, jax.Array], *more: Any) -> Any:
        return step(state, jax.tree.map(lambda leaf: leaf[0], batch), *more)

    # What comes out is the same everywhere, by the psum of all that the step adds up.
    return jax.shard_map(on_device, mesh=mesh, in_specs=in_specs, out_specs=P(), check_vma=False)
