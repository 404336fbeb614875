"""How long a run trains, and what it leaves behind."""

import dataclasses
import math
from typing import Literal

import gin

from bidi import ranges
from bidi.errors import ConfigError
from bidi.models.axes import MESH_AXES


@gin.configurable("Training")
@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """The run.

    Attributes:
        steps: updates in all.
        evaluate_every: updates between losses on the validation split.
        checkpoint_every: updates between checkpoints; a multiple of `evaluate_every`.
        log_every: updates between rows of metrics.
        keep_checkpoints: how many of the newest are kept, beside the best.
        accumulation: microbatches whose gradients are added for one update.
        label_smoothing: probability spread evenly over the vocabulary.
        ema_decay: of the moving average of the parameters, which is what is evaluated; 0 keeps
            none.
        seed: of parameters, dropout and the order of the data.
        prng_impl: what draws the random bits of dropout and of mixed partners, by jax's names:
            `threefry2x32`, the same bits on every kind of device, or `rbg`, the device's own
            generator, which TPUs need less time for and their compiler half as much. Parameters
            start the same by either, and a run may go on with the other.
        initialize_from: a workdir whose best parameters the run starts with, of a model of the
            same shape; may contain `$VAR` and `~`. Empty: it starts with random ones. Read again
            where a run is killed before its first checkpoint: name one that is finished.
        partitioner: `pmap`, every device has the whole state and its share of the rows; `mesh`, see
            `MeshConfig`.
        hold_out: a fold and the number of folds: the training pairs of this fold are not trained
            on, so that the model can label them (`bidi.pseudo`).
        skip_nonfinite: an update whose loss or gradient is no finite number changes nothing but
            the step, and is counted; the run stops when more than this many come in a row.
        on_failed_save: `stop`, or `continue` without a checkpoint that cannot be written (a full
            disk). The last checkpoint of a run must be written either way; and one of several
            processes that fails in the midst of writing stops them all.
    """

    steps: int = 10_000
    evaluate_every: int = 500
    checkpoint_every: int = 500
    log_every: int = 50
    keep_checkpoints: int = 2
    accumulation: int = 1
    label_smoothing: float = 0.1
    ema_decay: float = 0.0
    seed: int = 0
    prng_impl: Literal["threefry2x32", "rbg"] = "threefry2x32"
    initialize_from: str = ""
    partitioner: Literal["pmap", "mesh"] = "pmap"
    hold_out: tuple[int, int] | None = None
    skip_nonfinite: int = 0
    on_failed_save: Literal["stop", "continue"] = "stop"

    def __post_init__(self):
        counts = ("steps", "evaluate_every", "checkpoint_every", "log_every")
        ranges.check(self, "Training", *counts, "keep_checkpoints", "accumulation", least=1)
        ranges.check(self, "Training", "skip_nonfinite", least=0)
        # jax would take a greater one for one of these.
        ranges.check(self, "Training", "seed", least=0, below=2**32)
        ranges.check(self, "Training", "label_smoothing", "ema_decay", least=0, below=1)
        if self.checkpoint_every % self.evaluate_every:
            raise ValueError(
                f"Training.checkpoint_every = {self.checkpoint_every} is no multiple of "
                f"Training.evaluate_every = {self.evaluate_every}: a checkpoint is kept or dropped "
                "by its loss on the validation split"
            )
        if self.hold_out and not 0 <= self.hold_out[0] < self.hold_out[1] >= 2:
            raise ValueError(
                f"Training.hold_out = {self.hold_out}: write (fold, folds), folds from 0, two or "
                "more of them"
            )


@gin.configurable("Mesh")
@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How all devices are laid out for `Training.partitioner = 'mesh'`.

    One size may be -1: the rest.

    Attributes:
        data: copies of the state; each takes its share of the rows.
        fsdp: devices that divide the state of a copy; each takes its share of the copy's rows.
        tensor: devices that divide every layer by its heads, its feed-forward features and the
            vocabulary, and read the same rows.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        sizes = self._sizes()
        if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
            raise ValueError(f"{self}: sizes are 1 or more, and one of them may be -1, the rest")

    def shape(self, devices: int) -> tuple[int, int, int]:
        """The sizes for so many devices.

        Raises:
            ConfigError: they do not divide them.
        """
        sizes = self._sizes()
        rest, left = divmod(devices, math.prod(size for size in sizes if size > 0))
        if left or (rest != 1 and -1 not in sizes):
            raise ConfigError(f"{self} cannot be laid over {devices} devices")
        data, fsdp, tensor = (rest if size == -1 else size for size in sizes)
        return data, fsdp, tensor

    def __str__(self) -> str:
        return ", ".join(
            f"Mesh.{axis} = {size}" for axis, size in zip(MESH_AXES, self._sizes(), strict=True)
        )

    def _sizes(self) -> tuple[int, int, int]:
        return self.data, self.fsdp, self.tensor
