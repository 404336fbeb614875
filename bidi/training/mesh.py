"""Steps laid over a mesh of devices by `jax.jit`: rows, state and layers divided.

A step is one program over global arrays, whatever the mesh; `bidi.models.axes` says what of it is
divided by which axis.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import NamedSharding, PartitionSpec

from bidi.errors import ConfigError
from bidi.models import axes
from bidi.training.config import MeshConfig
from bidi.training.partitioner import Partitioner, divide
from bidi.training.step import Trainer


class Mesh(Partitioner):
    """Runs the steps of a `Trainer` on the devices of all processes, as one.

    Attributes:
        mesh: the devices.
        shardings: of a state.
    """

    def __init__(
        self,
        trainer: Trainer,
        sizes: MeshConfig,
        accumulation: int,
        rows: int,
        devices: Sequence[jax.Device] | None = None,
    ):
        """Compiles nothing yet.

        Args:
            trainer: whose steps are run.
            sizes: of the mesh.
            accumulation: microbatches of an update.
            rows: of a batch, over all devices and microbatches.
            devices: which to use; all of all processes by default.

        Raises:
            ConfigError: devices, rows or model cannot be divided so.
        """
        super().__init__(trainer)
        devices = jax.devices() if devices is None else list(devices)
        shape = sizes.shape(len(devices))
        data, fsdp, tensor = shape
        if rows % (data * fsdp * accumulation):
            raise ConfigError(
                f"Batches.rows = {rows} cannot be divided over Mesh.data = {data} x Mesh.fsdp = "
                f"{fsdp} x Training.accumulation = {accumulation}"
            )
        of_process = len(devices) // len({device.process_index for device in devices})
        if of_process % tensor:
            raise ConfigError(
                f"Mesh.tensor = {tensor} cannot divide the {of_process} devices of a process: "
                "those that divide a layer read the same rows, and each process reads its own"
            )
        auto = (jax.sharding.AxisType.Auto,) * len(shape)
        self.mesh = jax.sharding.Mesh(laid_out(devices, shape), axes.MESH_AXES, auto)
        self.leading = (accumulation, -1)
        _check_heads(trainer, tensor)
        self.shardings = jax.tree_util.tree_map_with_path(self._of_leaf, self._abstract_state())
        self._rows = self._sharding(PartitionSpec(axes.RULES["rows"]))
        self._microbatches = self._sharding(PartitionSpec(None, axes.RULES["rows"]))
        everywhere = self._sharding(PartitionSpec())
        self.train_step = jax.jit(
            self._on_mesh(trainer.train_step),
            in_shardings=(self.shardings, self._microbatches, everywhere),
            out_shardings=(self.shardings, everywhere),
            donate_argnums=0,
        )
        self.evaluate_step = jax.jit(
            self._on_mesh(trainer.evaluate_step),
            in_shardings=(self.shardings.params, self._rows),
            out_shardings=everywhere,
        )

    def for_training(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """A process's rows [B, ...] -> [accumulation, rows of a microbatch, ...] of all of them."""
        return self._put(divide(batch, self.leading), self._microbatches)

    def for_evaluation(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """A process's rows [B, ...] -> the rows of all of them."""
        return self._put(batch, self._rows)

    def _put(self, batch: dict[str, np.ndarray], sharding: NamedSharding) -> dict[str, Any]:
        return {
            key: jax.make_array_from_process_local_data(sharding, value)
            for key, value in batch.items()
        }

    def _sharding(self, spec: PartitionSpec) -> NamedSharding:
        return NamedSharding(self.mesh, spec)

    def _of_leaf(self, path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        """Of a leaf of the state: the optimiser's and the average follow the parameters."""
        names = axes.parameter_axes(path)
        for size, name in zip(leaf.shape[leaf.ndim - len(names) :], names, strict=True):
            axis = None if name is None else axes.RULES[name]
            if axis is not None and size % self.mesh.shape[axis]:
                where = jax.tree_util.keystr(path, simple=True, separator="/")
                raise ConfigError(
                    f"Mesh.{axis} = {self.mesh.shape[axis]} cannot divide the axis {name!r} of "
                    f"{where}, which is {size} long"
                )
        return self._sharding(axes.spec(names, leaf.ndim))

    def _on_mesh(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """The step, where `bidi.models.axes` knows of the mesh."""

        @functools.wraps(step)
        def on_mesh(*arguments: Any) -> Any:
            with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
                return step(*arguments)

        return on_mesh


def laid_out(devices: Sequence[jax.Device], shape: tuple[int, int, int]) -> np.ndarray:
    """Devices in the shape of a mesh, those that divide a layer in one process.

    Neighbours in a TPU's torus are neighbours in the mesh, as far as that allows.
    """
    laid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    groups = laid.reshape(-1, shape[-1])
    if any(len({device.process_index for device in group}) > 1 for group in groups):
        # A host has a square of the torus, not a line. Devices of two would read the same rows, of
        # which either host has other ones.
        laid = np.array(sorted(devices, key=lambda device: device.process_index)).reshape(shape)
    return laid


def _check_heads(trainer: Trainer, tensor: int) -> None:
    config = trainer.model.config
    if config.heads % tensor:
        raise ConfigError(
            f"Mesh.tensor = {tensor} cannot divide {config.name}.heads = {config.heads}"
        )
