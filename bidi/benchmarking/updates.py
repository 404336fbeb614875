"""The speed of training: a model of two directions beside one of L2R alone, in the same run.

Letters: W ways.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from bidi.benchmarking import flops, programs
from bidi.benchmarking.devices import Product, peak_flops, peak_memory
from bidi.benchmarking.rounds import Spread, interleaved, ratios
from bidi.data import pipeline
from bidi.data.partner import GOLD
from bidi.data.prepared import Prepared
from bidi.experiment import Experiment
from bidi.provenance import CompileMeter

L2R, BOTH = "L2R alone", "both"

# Of the matrix product that shows what the devices can reach: large enough for each kind.
SQUARE = {"cpu": 1024, "gpu": 8192, "tpu": 8192}

# What is made ahead is taken first: behind it the iterator shows its own speed.
_AHEAD, _TIMED_BATCHES = 20, 50


def l2r_alone(experiment: Experiment) -> Experiment:
    """The same experiment with one direction, from the left."""
    return dataclasses.replace(
        experiment,
        streams=dataclasses.replace(experiment.streams, ways="l2r"),
        partner=GOLD,
        model=dataclasses.replace(experiment.transformer, interaction="none", own_decoders=False),
        search=dataclasses.replace(experiment.search, coupling="none"),
    )


@dataclasses.dataclass(frozen=True)
class Round:
    """Updates one after another, as in training; what is said is the mean of one.

    Attributes:
        seconds: that an update took.
        seconds_waited: that the devices had nothing to do but to wait for a batch, at most.
        labels_W: labels of weight 1, of each direction.
        source_fill: the share of the source's places that hold a token.
        target_fill: of the target's.
    """

    seconds: float
    seconds_waited: float
    labels_W: np.ndarray
    source_fill: float
    target_fill: float


def update_flops(experiment: Experiment, vocabulary: int) -> int:
    """What arithmetic asks of one update of a Transformer, see `flops.update_flops`."""
    batches = experiment.batches
    shape = flops.Shape(
        rows=batches.rows,
        source_length=batches.source_length,
        target_length=batches.target_length,
        ways=len(experiment.streams.directions),
        vocabulary=vocabulary,
    )
    return flops.update_flops(experiment.transformer, shape, experiment.partner)


class Updates:
    """An experiment's updates on all devices, with real batches; compiled when it is made.

    Attributes:
        flops: operations that an update needs.
        compile_seconds: for the update's program.
        memory: of that program, see `programs.memory`.
    """

    def __init__(self, experiment: Experiment, prepared: Prepared, compiled: CompileMeter):
        """Takes the first update, which compiles it."""
        config = experiment.training
        trainer = experiment.make_trainer(prepared.source_vocabulary, prepared.target_vocabulary)
        self._partitioner = experiment.make_partitioner(trainer)
        self._data = pipeline.training_batches(
            experiment.pairs(prepared, "train"),
            experiment.streams,
            experiment.batches,
            experiment.partner,
            seed=config.seed,
        )
        self._rng = jax.random.key(config.seed)
        self.flops = update_flops(experiment, prepared.target_vocabulary.size)
        self._state: Any = self._partitioner.init(self._rng)
        before = compiled.seconds
        with programs.watch() as executables:
            self.run(updates=1)
        self.compile_seconds = compiled.seconds - before
        self.memory = programs.memory(executables)

    def run(self, updates: int) -> Round:
        """So many updates; the metrics of each are read one update late, as in training."""
        metrics: Any = None
        batches, waited = [], 0.0
        start = time.perf_counter()
        for _ in range(updates):
            asked = time.perf_counter()
            batch = next(self._data)
            if metrics is None or all(leaf.is_ready() for leaf in jax.tree.leaves(metrics)):
                waited += time.perf_counter() - asked
            previous = metrics
            self._state, metrics = self._partitioner.train_step(
                self._state, self._partitioner.for_training(batch), self._rng
            )
            jax.device_get(previous)
            batches.append(batch)
        jax.block_until_ready((self._state, metrics))
        seconds = time.perf_counter() - start
        return Round(
            seconds / updates,
            waited / updates,
            sum(batch["weights"].sum(axis=(0, 2), dtype=np.float64) for batch in batches) / updates,
            float(np.mean([(batch["source_segments"] != 0).mean() for batch in batches])),
            float(np.mean([(batch["segments"] != 0).mean() for batch in batches])),
        )

    def batches_per_second(self) -> float:
        """The speed of the iterator with nothing else to do."""
        for _ in range(_AHEAD):
            next(self._data)
        start = time.perf_counter()
        for _ in range(_TIMED_BATCHES):
            next(self._data)
        return _TIMED_BATCHES / (time.perf_counter() - start)

    def close(self) -> None:
        """Ends the iterator's threads."""
        self._data.close()


def measure(
    experiment: Experiment,
    prepared: Prepared,
    compiled: CompileMeter,
    *,
    rounds: int,
    updates: int,
) -> dict[str, Any]:
    """Measures an experiment of two directions beside its L2R alone.

    Args:
        experiment: of two directions.
        prepared: its data.
        compiled: counts since before.
        rounds: in each, everything is measured once, in turn.
        updates: of each model in a round.

    Returns:
        `systems` by name; `products`, FLOP/s of matrix products on all devices; `ratio`, time of
        an update of both over one of L2R; `bound`, the same of the operations they need; `memory`.
        What was measured in every round is a `Spread`. Of a system, `share_of_input` is the time
        that a batch takes to be made, alone, over that of an update: from 1 on the devices wait
        for the input, in `next` or, as dispatch needs Python's lock too, before their programs.
    """
    experiments = {L2R: l2r_alone(experiment), BOTH: experiment}
    systems = {name: Updates(one, prepared, compiled) for name, one in experiments.items()}
    products = _products(experiment)
    runs: dict[tuple[str, str], Callable[[], Any]] = {}
    for name, system in systems.items():
        runs["updates", name] = functools.partial(system.run, updates)
    for name, product in products.items():
        runs["product", name] = product.rate
    for name, system in systems.items():
        runs["batches", name] = system.batches_per_second
    try:
        taken = interleaved(rounds, runs, compiled)
    finally:
        for system in systems.values():
            system.close()
    rates = {name: taken["product", name] for name in products}
    seconds = {name: [one.seconds for one in taken["updates", name]] for name in systems}
    ratio, bound = ratios(seconds[BOTH], seconds[L2R]), systems[BOTH].flops / systems[L2R].flops
    return {
        "systems": {
            name: system_report(
                experiments[name],
                systems[name],
                taken["updates", name],
                rates,
                taken["batches", name],
            )
            for name in systems
        },
        "products": {name: Spread.of(its_rates) for name, its_rates in rates.items()},
        "ratio": ratio,
        "bound": bound,
        "percent_over_bound": 100 * (ratio.median / bound - 1),
        "memory": peak_memory(),
    }


def system_report(
    experiment: Experiment,
    system: Updates,
    taken: list[Round],
    rates: dict[str, list[float]],
    batch_rates: list[float],
) -> dict[str, Any]:
    """What the rounds say of one system; the rates of products and batches are of the same ones."""
    flops_per_second = [system.flops / one.seconds for one in taken]
    peak = peak_flops(jax.local_devices()[0].device_kind, experiment.transformer.dtype)
    ways = experiment.streams.directions
    return {
        "milliseconds_per_update": Spread.of(1000 * one.seconds for one in taken),
        "milliseconds_waited": Spread.of(1000 * one.seconds_waited for one in taken),
        "batches_per_second": Spread.of(batch_rates),
        "share_of_input": ratios(
            (1 / rate for rate in batch_rates), (one.seconds for one in taken)
        ),
        "tokens_per_second": Spread.of(one.labels_W.sum() / one.seconds for one in taken),
        "tokens_per_second_by_direction": {
            direction: Spread.of(one.labels_W[way] / one.seconds for one in taken)
            for way, direction in enumerate(ways)
        },
        "flops_per_update": system.flops,
        "flops_per_second": Spread.of(flops_per_second),
        "share_of_product": {
            name: ratios(flops_per_second, its_rates) for name, its_rates in rates.items()
        },
        "share_of_peak": peak
        and Spread.of(rate / peak / jax.device_count() for rate in flops_per_second),
        "padding": {
            "source": 1 - float(np.mean([one.source_fill for one in taken])),
            "target": 1 - float(np.mean([one.target_fill for one in taken])),
        },
        "compile_seconds": system.compile_seconds,
        "program_memory": system.memory,
    }


def _products(experiment: Experiment) -> dict[str, Product]:
    """One of the size of the largest dense layers on each device, and a large square.

    Named N x D x F: [N, D] times [D, F].
    """
    batches, model = experiment.batches, experiment.transformer
    tokens = batches.rows * batches.target_length * len(experiment.streams.directions)
    data, fsdp, tensor = experiment.mesh.shape(jax.device_count())
    tokens //= data * fsdp * experiment.training.accumulation
    square = SQUARE[jax.default_backend()]
    sizes = [(tokens, model.model_size, model.feedforward_size // tensor), (square,) * 3]
    return {
        f"{rows} x {inner} x {outer}": Product(rows, inner, outer, model.activation_dtype)
        for rows, inner, outer in sizes
    }
