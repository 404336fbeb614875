"""What a run tells: a file of metrics, TensorBoard, and a line or a bar on the terminal.

Letters: W ways.
"""

import contextlib
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import tensorboardX
from etils import epath
from tensorboardX import record_writer

from bidi.errors import UserError
from bidi.files import GrowingFile, path_of, write_whole
from bidi.progress import progress_bar
from bidi.training.loss import LossSums
from bidi.training.step import Suspects

log = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"

# What the terminal shows of a row, beside the loss of each direction, and what it calls it.
_SHOWN = {
    "loss": "loss",
    "tokens_per_second": "tokens/s",
    "milliseconds_per_update": "ms/update",
}

# tensorboardX asks us for files in directories that begin with this. By its own files a full disk
# would stop the thread that writes, and then, without a word, the run that waits for it.
_SCHEME = "bidi"


class _TensorboardFiles:
    def directory_check(self, path: str) -> None:
        path_of(path.removeprefix(f"{_SCHEME}:")).mkdir(parents=True, exist_ok=True)

    def open(self, path: str) -> GrowingFile:
        return GrowingFile(path_of(path.removeprefix(f"{_SCHEME}:")))


record_writer.register_writer_factory(_SCHEME, _TensorboardFiles())


class NotFiniteError(UserError):
    """A loss or a gradient is no finite number."""


def means(sums: LossSums, directions: Sequence[str], prefix: str) -> dict[str, float]:
    """Sums over labels as numbers to report, by direction; losses in nats a label."""
    tokens_W = np.maximum(np.asarray(sums.tokens_W), 1)
    row = {f"{prefix}/loss": float(sums.loss) / float(tokens_W.sum())}
    for way, direction in enumerate(directions):
        row[f"{prefix}/nll_{direction}"] = float(sums.nll_W[way] / tokens_W[way])
        row[f"{prefix}/accuracy_{direction}"] = float(sums.correct_W[way] / tokens_W[way])
    return row


class Reporter:
    """Writes rows of metrics, each with its step, to all who read them."""

    def __init__(self, workdir: epath.Path, first_step: int, steps: int):
        """Rows behind `first_step`, of a run that was cut off, are dropped: they come again."""
        self._path = workdir / METRICS_FILE
        _drop_rows_behind(self._path, first_step)
        self._file = GrowingFile(self._path)
        self._tensorboard = tensorboardX.SummaryWriter(
            f"{_SCHEME}:{workdir / 'tensorboard'}", purge_step=first_step + 1
        )
        self._progress = progress_bar()
        self._task = self._progress.add_task("training", total=steps, completed=first_step)
        self._progress.start()

    def advance(self, step: int) -> None:
        """So many updates are made."""
        self._progress.update(self._task, completed=step)

    def write(self, step: int, row: dict[str, float]) -> None:
        """Writes a row and shows the gist of it."""
        self._file.write((json.dumps({"step": step, **row}) + "\n").encode())
        self._file.flush()
        for name, value in row.items():
            self._tensorboard.add_scalar(name, value, step)
        kind = next(iter(row)).split("/")[0]
        names = {name: name.split("/")[1] for name in row}
        shown = "  ".join(
            f"{_SHOWN.get(short, short)} {row[name]:,.5g}"
            for name, short in names.items()
            if short in _SHOWN or short.startswith("nll_")
        )
        self._progress.update(self._task, description=shown if kind == "train" else None)
        if not sys.stderr.isatty() or kind != "train":
            log.info("step %d  %s  %s", step, kind, shown)

    def close(self) -> None:
        """Lets go of files and terminal."""
        self._progress.stop()
        self._tensorboard.close()
        self._file.close()


class SilentReporter(Reporter):
    """A `Reporter` of a process that leaves writing to the first one."""

    def __init__(self, workdir: epath.Path, first_step: int, steps: int):
        """Touches nothing."""

    def advance(self, step: int) -> None:
        """Tells nobody."""

    def write(self, step: int, row: dict[str, float]) -> None:
        """Writes nothing."""

    def close(self) -> None:
        """Nothing is open."""


def _drop_rows_behind(path: epath.Path, step: int) -> None:
    if path.exists():
        kept = [row for row in _rows(path) if row["step"] <= step]
        write_whole(path, "".join(f"{json.dumps(row)}\n" for row in kept))


class TrainMeter:
    """Adds up the metrics of updates until they are reported, each read one update late.

    Reading the metrics of the update before, and not of the one just sent off, lets the device
    work on while the host looks at them.
    """

    def __init__(
        self,
        directions: Sequence[str],
        name_suspects: Callable[[Suspects], str],
        skip: int = 0,
        skipped_in_a_row: int = 0,
    ):
        """Nothing is added yet.

        Args:
            directions: names the ways.
            name_suspects: says in words what made an update no finite number.
            skip: so many updates in a row may be skipped.
            skipped_in_a_row: just before the first that is added.
        """
        self._directions = directions
        self._name_suspects, self._skip = name_suspects, skip
        self.skipped_in_a_row = skipped_in_a_row
        self._skipped = 0
        self._pending: tuple[int, Any] | None = None
        self._totals: Any = None
        self._updates = 0  # whose metrics are in the totals
        self._untimed = 0
        self._since = time.perf_counter()

    def add(self, step: int, metrics: Any) -> None:
        """Takes the metrics of update `step`, on the device, and reads those of the one before."""
        self.drain()
        self._pending = (step, metrics)

    def drain(self) -> None:
        """Reads what is pending.

        Raises:
            NotFiniteError: the loss or the gradient is no finite number, in more updates in a
                row than may be skipped.
        """
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        # Read where there are any: those of many devices are many.
        suspects = metrics.pop("suspects")
        metrics = jax.device_get(metrics)
        loss, norm = float(metrics["sums"].loss), float(metrics["gradient_norm"])
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._skip_or_stop(
                f"update {step} (from step {step - 1} to {step}): loss {loss}, gradient norm "
                f"{norm}; {self._name_suspects(jax.device_get(suspects))}"
            )
            return
        self.skipped_in_a_row = 0
        if self._totals is not None:
            metrics = jax.tree.map(np.add, self._totals, metrics)
        self._totals = metrics
        self._updates += 1

    def _skip_or_stop(self, what: str) -> None:
        self.skipped_in_a_row += 1
        self._skipped += 1
        if self.skipped_in_a_row <= self._skip:
            log.warning("Skipped %s", what)
            return
        if self._skip:
            what += f"; {self._skip} updates in a row before it were skipped already"
        raise NotFiniteError(what)

    def row(self) -> dict[str, float]:
        """The means since the last row; nothing where there were no updates."""
        now = time.perf_counter()
        made = self._updates + self._skipped  # these take time too
        seconds, timed = now - self._since, made - self._untimed
        row = {}
        if self._updates:
            sums = self._totals["sums"]
            row = means(sums, self._directions, "train")
            row["train/gradient_norm"] = float(self._totals["gradient_norm"]) / self._updates
            if timed:
                tokens = float(sums.tokens_W.sum()) * timed / made
                row["train/tokens_per_second"] = tokens / seconds
        if self._skipped:
            row["train/skipped"] = float(self._skipped)
        if timed:
            row["train/milliseconds_per_update"] = 1000 * seconds / timed
        self._totals, self._updates, self._skipped = None, 0, 0
        self._untimed, self._since = 0, now
        return row

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """What is done within is not counted as training time."""
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start

    def restart_clock(self) -> None:
        """Training time counts from now on: the update before was compiled in its time."""
        self._untimed = 1
        self._since = time.perf_counter()


def training_summary(workdir: epath.Path, step: int) -> dict[str, float | None]:
    """Updates, seconds and milliseconds an update of a run, up to a step, from its metrics.

    Seconds and milliseconds are None where there are no rows of them.
    """
    speed = "train/milliseconds_per_update"
    timed = [row for row in _rows(workdir / METRICS_FILE) if speed in row and row["step"] <= step]
    milliseconds = np.array([row[speed] for row in timed])
    steps = np.diff([0] + [row["step"] for row in timed])
    return {
        "updates": step,
        "seconds": float((steps * milliseconds).sum() / 1000) if timed else None,
        "median_milliseconds_per_update": float(np.median(milliseconds)) if timed else None,
    }


def _rows(path: epath.Path) -> list[dict[str, Any]]:
    """Those of a file of metrics, or of none, that are whole."""
    lines = path.read_text().splitlines() if path.exists() else []
    # The last line of a run that was killed may be cut off in the middle.
    return [json.loads(line) for line in lines if line.endswith("}")]
