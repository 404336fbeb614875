"""Checkpoints: state, data position and metrics, saved and restored together by Orbax."""

import contextlib
import functools
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import grain
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from bidi import distributed
from bidi.errors import UserError
from bidi.files import absolute, in_bucket, matching, move_directory, remove
from bidi.training.step import TrainState

log = logging.getLogger(__name__)

T = TypeVar("T")

_LOSS = "validation_loss"
_CHECKSUMS = "checksums"
_COMMITTED = "commit_success.txt"


class FailedSaveError(UserError):
    """A checkpoint cannot be written; those before it stand."""


class NoRoomError(FailedSaveError):
    """Before anything of it was written; each of several processes knows."""


class ProcessesError(UserError):
    """The checkpoint holds the places in the data of another number of processes."""


class Checkpoints:
    """The checkpoints of one run.

    The newest are kept and, beside them, the one with the lowest validation loss. Several processes
    call the same methods in the same order.
    """

    def __init__(self, workdir: epath.Path, keep: int):
        """Opens `workdir/checkpoints`, new or not.

        For a reader too, those with damaged metrics are set aside: Orbax opens none beside them.
        """
        self.directory = absolute(workdir / "checkpoints")
        distributed.from_first(lambda: self._set_aside(self._unopenable()))
        self._saving: int | None = None
        self._options = ocp.CheckpointManagerOptions(
            best_fn=lambda metrics: metrics[_LOSS],
            best_mode="min",
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                [
                    checkpoint_managers.LatestN(keep),
                    checkpoint_managers.BestN(
                        get_metric_fn=lambda metrics: metrics[_LOSS],
                        reverse=True,
                        n=1,
                        keep_checkpoints_without_metrics=False,
                    ),
                ]
            ),
        )
        self._manager = self._new_manager()

    def save(
        self, state: TrainState, data: Any, progress: dict[str, Any], loss: float | None
    ) -> None:
        """Saves in the background; `wait` says whether that went well.

        Args:
            state: may be donated as soon as this returns.
            data: a Grain iterator, saved with its place.
            progress: JSON, given back on a restore.
            loss: on the validation split at this very step, or None.

        Raises:
            NoRoomError: of several processes one sees that it cannot be written.
            FailedSaveError: it cannot be written; what there is of it is removed.
        """
        self._saving = int(state.step)
        items = _items(state)
        self._check_room(sum(leaf.nbytes for leaf in jax.tree.leaves(items)))
        sums = {name: int(checksum(item)) for name, item in items.items()}
        arguments = ocp.args.Composite(
            **{name: ocp.args.StandardSave(item) for name, item in items.items()},
            data=grain.checkpoint.CheckpointSave(data),
            progress=ocp.args.JsonSave({**progress, _CHECKSUMS: sums}),
        )
        metrics = None if loss is None else {_LOSS: loss}
        with self._removing_what_failed():
            self._manager.save(self._saving, args=arguments, metrics=metrics, force=True)

    def _check_room(self, size: int) -> None:
        """Of several processes none must begin to write what another cannot: it would wait long."""
        if jax.process_count() == 1 or in_bucket(self.directory):  # which has room
            return
        failure, probe = None, self.directory.with_name(f"probe-{jax.process_index()}")
        try:
            probe.mkdir(exist_ok=True)
            free = shutil.disk_usage(probe).free
            probe.rmdir()
            if free < size:
                failure = f"{free:,} bytes are left, and it has {size:,}"
        except OSError as error:
            failure = str(error)
        failures = distributed.allgather(failure)
        for process, one in enumerate(failures):
            if one:
                raise NoRoomError(
                    f"The checkpoint of step {self._saving} cannot be written to {self.directory} "
                    f"by process {process}: {one}"
                )

    def wait(self) -> None:
        """Until what is being saved in the background is written.

        Raises:
            FailedSaveError: it cannot be written; what there is of it is removed.
        """
        with self._removing_what_failed():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _removing_what_failed(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a full disk shows as errors of many libraries
            if jax.process_count() == 1:
                self._open_again()
            else:
                self._remove_unfinished()
            raise FailedSaveError(
                f"The checkpoint of step {self._saving} cannot be written to {self.directory}: "
                f"{type(error).__name__}: {str(error)[:200]}"
            ) from error

    def restore_latest(
        self, state: TrainState, data: Any
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """State and progress of the newest checkpoint that can be read; None if there is none.

        Checkpoints that cannot be read are said and set aside, under a name of their own. What a
        save left that was killed is removed: only who trains here may call this.

        Args:
            state: of the shapes and on the devices that the restored one shall have.
            data: a Grain iterator, set to the place saved.

        Raises:
            ProcessesError: it was saved by another number of processes.
            UserError: there are checkpoints, and none can be read.
        """
        self.wait()  # what is being saved here is not what was left
        distributed.from_first(self._remove_unfinished)
        steps = sorted(self._manager.all_steps(), reverse=True)
        # A network's file system may show one process an older listing than another.
        distributed.check_alike({f"checkpoints in {self.directory}": steps})
        failures = []
        for step in steps:
            # First what each process reads for itself: the rest they read together, and would wait.
            _, failure = _attempted(functools.partial(self._check_place, step))
            restored = None
            if failure is None:
                restored, failure = _attempted(functools.partial(self._restore, step, state, data))
            if restored is None:
                failures.append(f"step {step}: {failure}")
                log.error("Checkpoint of %s cannot be read; trying the one before", failures[-1])
                continue
            unreadable = [other for other in steps if other > step]
            distributed.from_first(functools.partial(self._set_aside, unreadable))
            self._manager.reload()
            return restored
        if failures:
            raise UserError(
                f"None of the checkpoints in {self.directory} can be read:\n" + "\n".join(failures)
            )
        return None

    def best_step(self) -> int | None:
        """The step with the lowest validation loss; where none was validated, the newest."""
        # A run may be stopped before its first validation.
        best: int | None = self._manager.best_step()
        return self.latest_step() if best is None else best

    def latest_step(self) -> int | None:
        """The newest step, None where there is none."""
        return self._manager.latest_step()

    def all_steps(self) -> list[int]:
        """The steps there are, oldest first."""
        return sorted(self._manager.all_steps())

    def close(self) -> None:
        """`wait`, and lets go of all threads."""
        # What is raised here is said only: another error brought the run here.
        try:
            self.wait()
        except FailedSaveError as error:
            log.error("%s", error)
        self._close_manager()

    def _new_manager(self) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(self.directory, options=self._options)

    def _close_manager(self) -> None:
        # Orbax may raise once more, from another of its threads, what a save has failed by.
        try:
            self._manager.close()
        except Exception as error:
            log.error("%s", error)

    def _open_again(self) -> None:
        """After a save that failed, which would fail the next one, too.

        Orbax has struck off the checkpoints that it was to replace, and they are there still.
        """
        self._close_manager()
        self._remove_unfinished()
        self._manager = self._new_manager()

    def restore_params(self, step: int, params: Any) -> Any:
        """What is to be evaluated: the moving average where there is one, else the parameters.

        Args:
            step: one of those saved.
            params: of the shapes and on the devices that the restored ones shall have.

        Raises:
            ValueError: they are not what was saved.
        """
        name = "ema" if (self.directory / str(step) / "ema").exists() else "params"
        # Now: where shapes differ, Orbax stops in the middle of its reading, which goes on behind.
        _compare_shapes(self.directory / str(step) / name, params)
        items = {name: ocp.args.StandardRestore(params), "progress": ocp.args.JsonRestore()}
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        _compare_checksum(name, restored)
        return restored[name]

    def _restore(
        self, step: int, state: TrainState, data: Any
    ) -> tuple[TrainState, dict[str, Any]]:
        items = _items(state)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                **{name: ocp.args.StandardRestore(item) for name, item in items.items()},
                data=grain.checkpoint.CheckpointRestore(data),
                progress=ocp.args.JsonRestore(),
            ),
        )
        for name in items:
            _compare_checksum(name, restored)
        restored_state = TrainState(
            # Where the steps run, like all the rest: else they would be compiled twice.
            step=jax.device_put(jnp.int32(step), state.step.sharding),
            params=restored["params"],
            optimizer=restored["optimizer"],
            ema=restored["ema"] if state.ema else None,
        )
        return restored_state, restored["progress"]

    def _check_place(self, step: int) -> None:
        """Whether this process can read its own place in the data."""
        process, count = jax.process_index(), jax.process_count()
        places = self.directory / str(step) / "data"
        # A file for each process, named after their number.
        saved = {path.stem.rpartition("-")[2] for path in matching(places, "process_*-of-*.json")}
        if saved and str(count) not in saved:
            raise ProcessesError(
                f"{self.directory / str(step)} was saved by {saved.pop()} processes, now there are "
                f"{count}: each has a place of its own in the data, so start as many as before, or "
                "a new workdir with Training.initialize_from"
            )
        json.loads((places / f"process_{process}-of-{count}.json").read_text())

    def _unopenable(self) -> list[int]:
        """Steps whose metrics are damaged; Orbax reads them all before anything else."""
        steps = []
        for directory in matching(self.directory, "*"):
            step, path = directory.name, directory / "metrics" / "metrics"
            if not path.is_file():
                continue
            try:
                float(json.loads(path.read_bytes())[_LOSS])
            except (KeyError, TypeError, ValueError) as error:
                if step.isdigit():  # else it is being written
                    log.error("Checkpoint of step %s has damaged metrics: %s", step, error)
                    steps.append(int(step))
        return steps

    def _remove_unfinished(self) -> None:
        """Not in a bucket, where it lies under its step's own name until that is saved again."""
        for path in matching(self.directory, "*.orbax-checkpoint-tmp"):
            remove(path)

    def _set_aside(self, steps: list[int]) -> None:
        """Renames checkpoints that cannot be read: their steps will be saved anew."""
        for step in steps:
            aside = self.directory.with_name(f"unreadable-{step}")
            while aside.exists():
                aside = aside.with_name(f"{aside.name}-again")
            # In a bucket this makes it a checkpoint, and moving it takes a while.
            remove(self.directory / str(step) / _COMMITTED)
            move_directory(self.directory / str(step), aside)


def _attempted(read: Callable[[], T]) -> tuple[T | None, str | None]:
    """What `read` gives, or what it failed of: what one process cannot read, none goes on with."""
    result = failure = None
    try:
        result = read()
    except ProcessesError:
        raise
    except Exception as error:  # damage shows as errors of many libraries
        if "RESOURCE_EXHAUSTED" in str(error):  # jax's word for a device without room: no damage
            raise
        failure = f"{type(error).__name__}: {str(error)[:200]}"
    failures = [one for one in distributed.allgather(failure) if one]
    return (None, failures[0]) if failures else (result, None)


def _items(state: TrainState) -> dict[str, Any]:
    items = {"params": state.params, "optimizer": state.optimizer, "ema": state.ema}
    return {name: item for name, item in items.items() if item}


@jax.jit
def checksum(item: Any) -> jax.Array:
    """uint32; a changed bit changes it. Orbax does not notice one within an array.

    Made on the device, so that a fault of the copy to the host is seen as well.
    """
    total = jnp.uint32(0)
    for leaf in jax.tree.leaves(item):
        words = jax.lax.bitcast_convert_type(leaf, jnp.uint32).ravel()
        # Odd factors: no change of a single word is lost modulo 2^32, and places count.
        factors = 2 * jnp.arange(words.size, dtype=jnp.uint32) + 1
        total = total * jnp.uint32(31) + (words * factors).sum(dtype=jnp.uint32)
    return total


def _compare_shapes(path: epath.Path, params: Any) -> None:
    saved = ocp.StandardCheckpointHandler().metadata(path).tree
    there, here = (
        {
            jax.tree_util.keystr(place, simple=True, separator="/"): tuple(leaf.shape)
            for place, leaf in jax.tree_util.tree_leaves_with_path(
                tree, is_leaf=lambda leaf: hasattr(leaf, "shape")
            )
        }
        for tree in (saved, params)
    )
    if different := sorted(n for n in there | here if there.get(n) != here.get(n)):
        name = different[0]
        raise ValueError(f"{name} has shape {there.get(name)} there and {here.get(name)} here")


def _compare_checksum(name: str, restored: Any) -> None:
    saved, now = restored["progress"].get(_CHECKSUMS, {}).get(name), int(checksum(restored[name]))
    if saved not in (None, now):
        raise ValueError(f"{name} has checksum {now}, but {saved} was saved")
