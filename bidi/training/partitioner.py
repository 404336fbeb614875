"""How a step is laid over devices: data parallel by `jax.pmap`.

The state keeps its own shape (no leading device axis) and is the same on every device, so that one
state serves training, checkpoints and search.
"""

import functools
from typing import Any

import jax
import numpy as np

from bidi.config import ConfigError
from bidi.training.step import Trainer

AXIS = "devices"


class Pmap:
    """Runs the steps of a `Trainer` on all devices of this process, the batch divided over them.

    Attributes:
        devices: how many.
        replicated: the sharding of the state.
    """

    def __init__(self, trainer: Trainer, accumulation: int, rows: int, devices: int | None = None):
        """Compiles nothing yet.

        Args:
            trainer: whose steps are run.
            accumulation: microbatches of an update.
            rows: of a batch, over all devices and microbatches.
            devices: how many to use; all by default.

        Raises:
            ConfigError: the rows cannot be divided.
        """
        self.devices = devices or jax.local_device_count()
        self._accumulation = accumulation
        if rows % (self.devices * accumulation):
            raise ConfigError(
                f"Batches.rows = {rows} cannot be divided over {self.devices} devices x "
                f"Training.accumulation = {accumulation}"
            )
        used = jax.local_devices()[: self.devices]
        mesh = jax.sharding.Mesh(np.array(used), (AXIS,))
        self.replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        # `state` goes in and comes out unmapped, in place.
        self.train_step = jax.pmap(
            functools.partial(trainer.train_step, axis=AXIS),
            axis_name=AXIS,
            in_axes=(None, 0, None),
            out_axes=(None, None),
            donate_argnums=0,
            devices=used,
        )
        self.evaluate_step = jax.pmap(
            functools.partial(trainer.evaluate_step, axis=AXIS),
            axis_name=AXIS,
            in_axes=(None, 0),
            out_axes=None,
            devices=used,
        )

    def for_training(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """[B, ...] -> [devices, accumulation, rows of a microbatch, ...]."""
        return self._divide(batch, (self.devices, self._accumulation, -1))

    def for_evaluation(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """[B, ...] -> [devices, B / devices, ...]."""
        return self._divide(batch, (self.devices, -1))

    def _divide(self, batch: dict[str, np.ndarray], shape: tuple[int, ...]) -> dict[str, Any]:
        return {key: value.reshape(*shape, *value.shape[1:]) for key, value in batch.items()}
