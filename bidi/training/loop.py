"""The run: restore, then evaluate, save, take a batch, step, until all steps are made.

The order within a round is the contract that makes resuming exact: the old state is evaluated and
saved with the place of the data iterator BEFORE the next batch is taken from it.
"""

import contextlib
import dataclasses
import functools
import logging
import math
import time
from collections.abc import Callable

import jax
import numpy as np
from etils import epath

from bidi import distributed
from bidi.data import pipeline
from bidi.data.prepare import check_prepared
from bidi.data.prepared import Prepared
from bidi.data.pseudo import PseudoOutputs
from bidi.errors import ConfigError
from bidi.experiment import CONFIG_FILE, Experiment
from bidi.provenance import CompileMeter
from bidi.tokens import EOS
from bidi.training.checkpoints import (
    Checkpoints,
    FailedSaveError,
    NoRoomError,
)
from bidi.training.initial import initial_params
from bidi.training.lock import locked
from bidi.training.report import NotFiniteError, Reporter, SilentReporter, TrainMeter, means
from bidi.training.step import Suspects, TrainState
from bidi.training.stop import StopOnSignal
from bidi.training.workdir import check_place, claim

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended.

    Attributes:
        step: updates made in all.
        finished: whether these are all; else a signal stopped the run.
    """

    step: int
    finished: bool


def train(experiment: Experiment, workdir: epath.Path, stop: StopOnSignal | None = None) -> Outcome:
    """Trains, or goes on with training, in `workdir`.

    `stop` is entered already; by default one of its own is.

    Raises:
        ConfigError: updates would change nothing, or devices, rows or model do not fit together.
        CannotResumeError: the workdir holds another run.
        UserError: another run is at work in it.
        NotFiniteError: the loss is no number any more; names the update, its examples if they
            are why, and what to go back to.
        FailedSaveError: a checkpoint cannot be written; names the one before.
        PathError: checkpoints there could not be read.
    """
    compiled = CompileMeter()
    check_place(workdir)
    prepared = Prepared.open(experiment.data.directory)
    prepared.check_alike()
    if experiment.partner.kind == "pseudo":
        PseudoOutputs.open(experiment.partner.directory, prepared).check_alike()
    _check_settings(experiment, prepared)
    run = _Run(experiment, prepared, workdir)
    entered = StopOnSignal() if stop is None else contextlib.nullcontext(stop)
    with locked(workdir), entered as asked:
        run.claim()
        try:
            return run.train(asked, compiled)
        finally:
            run.checkpoints.close()
            run.data.close()


def check(experiment: Experiment, prepared: Prepared) -> None:
    """Looks for what would stop its training at once, as far as prepared data alone can tell.

    For what is to be trained much later: `train` finds the same by itself.

    Raises:
        ConfigError: see `train`.
        DataError: the data were prepared with other settings, or do not fit the batches.
    """
    _check_settings(experiment, prepared)
    for split in ("train", "validation"):
        pipeline.check_lengths(prepared.pairs(split), experiment.streams, experiment.batches)
    experiment.make_partitioner(
        experiment.make_trainer(prepared.source_vocabulary, prepared.target_vocabulary)
    )


def _check_settings(experiment: Experiment, prepared: Prepared) -> None:
    """What `check` can say before data are read and a model is made, as `_Run` does."""
    check_prepared(experiment.data, prepared.manifest)
    steps, decay_steps = experiment.training.steps, experiment.optimizer.decay_steps
    if decay_steps is not None and steps > decay_steps:
        raise ConfigError(
            f"Training.steps = {steps}, but from Optimizer.decay_steps = {decay_steps} on the "
            "learning rate is 0: let the cosine last as long, in a new workdir (--gin.STEPS where "
            "an experiment has that), or train for less"
        )


class _Run:
    """What one call of `train` works with."""

    def __init__(self, experiment: Experiment, prepared: Prepared, workdir: epath.Path):
        self.experiment, self.config = experiment, experiment.training
        self.workdir = workdir
        self.trainer = experiment.make_trainer(
            prepared.source_vocabulary, prepared.target_vocabulary
        )
        self.partitioner = experiment.make_partitioner(self.trainer)
        place = {"process_index": jax.process_index(), "process_count": jax.process_count()}
        self.data = pipeline.training_batches(
            experiment.pairs(prepared, "train"),
            experiment.streams,
            experiment.batches,
            experiment.partner,
            seed=self.config.seed,
            **place,
        )
        self.validation = functools.partial(
            pipeline.validation_batches,
            experiment.pairs(prepared, "validation"),
            experiment.streams,
            experiment.batches,
            # What was labelled shows in the gold text beside it: to copy is not to be chosen for.
            dataclasses.replace(experiment.partner, loss_on_pseudo=False),
            **place,
        )
        next(self.validation())  # what is wrong with it is said now, not at the first evaluation
        self.prepared, self.rng = prepared, jax.random.key(self.config.seed)
        if self.config.initialize_from and distributed.from_first(
            lambda: not (workdir / CONFIG_FILE).exists()
        ):
            self._initial_params()  # for what is wrong with it

    def claim(self) -> None:
        """Only once all is checked: a config that cannot be run must not claim the workdir."""
        distributed.from_first(lambda: claim(self.workdir, self.prepared, self.experiment))
        self.checkpoints = Checkpoints(self.workdir, self.config.keep_checkpoints)

    def train(self, stop: StopOnSignal, compiled: CompileMeter) -> Outcome:
        config = self.config
        state, skipped_in_a_row = self._start()
        first = step = int(state.step)
        if step >= config.steps:
            log.info("All %d steps are made already: nothing to do", step)
            return Outcome(step, finished=True)
        kind = Reporter if distributed.is_first() else SilentReporter
        reporter, votes = kind(self.workdir, step, config.steps), distributed.Votes()
        meter = TrainMeter(
            self.experiment.streams.directions,
            self._name_suspects,
            config.skip_nonfinite,
            skipped_in_a_row,
        )
        started = time.perf_counter()
        try:
            while True:
                # Asked once a round: a signal between two looks would stop the run unsaved.
                final, stopping = step == config.steps, votes.any(stop.is_set())
                logging_due = step % config.log_every == 0
                evaluating = step > first and (step % config.evaluate_every == 0 or final)
                saving = step % config.checkpoint_every == 0 or final or stopping
                saving = saving and step > first
                if logging_due or evaluating or saving:
                    meter.drain()  # a state behind a NaN is neither evaluated nor saved
                # A row ends where a state is saved: who resumes from there writes the same rows.
                row = meter.row() if logging_due or saving else {}
                with meter.pause():
                    if row:
                        reporter.write(step, row)
                    loss = self._evaluate(state, step, reporter) if evaluating else None
                    if saving:
                        progress = {"skipped_in_a_row": meter.skipped_in_a_row}
                        self._save(state, progress, loss, last=final or stopping)
                if final or stopping:
                    break
                batch = self.partitioner.for_training(next(self.data))
                state, metrics = self.partitioner.train_step(state, batch, self.rng)
                step += 1
                meter.add(step, metrics)
                reporter.advance(step)
                if step == first + 1:
                    jax.block_until_ready(metrics)
                    log.info("Compiled %d programs in %.1f s", compiled.count, compiled.seconds)
                    meter.restart_clock()
        except NotFiniteError as error:
            raise self._with_advice(error) from None
        finally:
            reporter.close()
        log.info("%d updates in %.1f s", step - first, time.perf_counter() - started)
        return Outcome(step, finished=step == config.steps)

    def _start(self) -> tuple[TrainState, int]:
        """The newest checkpoint's state, else a fresh one; updates just skipped before it."""
        restored = self.checkpoints.restore_latest(self.partitioner.shapes(), self.data)
        if restored is None:
            state = self.partitioner.init(self.rng)
            if self.config.initialize_from:
                state = self.trainer.with_params(state, self._initial_params())
            parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
            log.info("New run in %s: %s parameters", self.workdir, f"{parameters:,}")
            return state, 0
        state, progress = restored
        log.info("Resuming %s from step %d", self.workdir, int(state.step))
        return state, progress.get("skipped_in_a_row", 0)

    def _initial_params(self) -> dict:
        return initial_params(self.experiment, self.prepared, self.partitioner.shapes().params)

    def _evaluate(self, state: TrainState, step: int, reporter: Reporter) -> float:
        """Loss on the validation split, in nats a label."""
        params = state.params if state.ema is None else state.ema
        sums = None
        for batch in self.validation():
            new = self.partitioner.evaluate_step(params, self.partitioner.for_evaluation(batch))
            sums = new if sums is None else jax.tree.map(lambda a, b: a + b, sums, new)
        row = means(jax.device_get(sums), self.experiment.streams.directions, "validation")
        loss = row["validation/loss"]
        if not math.isfinite(loss):
            raise NotFiniteError(f"step {step}: loss on the validation split {loss}")
        reporter.write(step, row)
        return loss

    def _save(
        self, state: TrainState, progress: dict[str, int], loss: float | None, last: bool
    ) -> None:
        """Saves in the background, but the `last` one: nothing will say that it failed."""
        goes_on = self.config.on_failed_save == "continue"
        self._attempt(self.checkpoints.wait, goes_on)
        self._attempt(
            lambda: self.checkpoints.save(state, self.data, progress, loss), goes_on and not last
        )
        if last:
            self._attempt(self.checkpoints.wait, goes_on=False)

    def _attempt(self, save: Callable[[], None], goes_on: bool) -> None:
        try:
            save()
        except FailedSaveError as error:
            # In the midst of writing the other processes wait for this one: they end with it.
            known_to_all = isinstance(error, NoRoomError) or jax.process_count() == 1
            if not (goes_on and known_to_all):
                raise FailedSaveError(
                    f"{error}. Make room there, or mend what it says, and run the same command "
                    f"again; {self._last_good()}"
                ) from error
            log.error("%s. Going on; %s", error, self._last_good())

    def _name_suspects(self, suspects: Suspects) -> str:
        """The examples whose loss alone is no finite number, by their sources."""
        rows = int(suspects.rows)
        if not rows:
            return "no example's loss is the reason, their gradient is"
        if rows == self.experiment.batches.rows:
            return "so it is with all rows: the parameters are the reason, not the examples"
        vocabulary = self.prepared.source_vocabulary
        source_RS = suspects.source.reshape(-1, suspects.source.shape[-1])
        texts = [
            vocabulary.decode(example)
            for row in source_RS
            for example in np.split(row, np.flatnonzero(row == EOS) + 1)[:-1]
        ]
        return f"{rows} rows are the reason, among them the one(s) with the sources " + ", ".join(
            map(repr, texts)
        )

    def _last_good(self) -> str:
        good = self.checkpoints.latest_step()
        return f"the last good checkpoint is step {good}" if good else "there is no checkpoint yet"

    def _with_advice(self, error: NotFiniteError) -> NotFiniteError:
        return NotFiniteError(
            f"{error}; {self._last_good()} in {self.checkpoints.directory}. Take such examples out "
            "of the data, or let Training.skip_nonfinite leave out some updates; else lower "
            "Optimizer.learning_rate or Optimizer.clip_norm, in a new workdir."
        )
