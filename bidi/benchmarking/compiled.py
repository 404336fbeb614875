"""What an experiment takes on devices that are not there, by their compiler.

The update and the search are those of `bidi.train` and `bidi.evaluate`, compiled for the devices of
a topology in place of those of this machine. No data are needed: of batches only shapes count.
"""

import dataclasses
import math
import re
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from bidi.benchmarking import hlo
from bidi.benchmarking.devices import CHIPS, Chip
from bidi.benchmarking.topology import compiler_options
from bidi.benchmarking.updates import update_flops
from bidi.data import pipeline
from bidi.data.vocabulary import Vocabulary
from bidi.evaluation.generate import Generator
from bidi.experiment import Experiment
from bidi.models.config import TransformerConfig
from bidi.tokens import FIRST_TEXT_ID


class SizeOnly(Vocabulary):
    """Stands for a vocabulary that nobody has trained yet."""

    def __init__(self, size: int):
        """Of so many ids."""
        self.size = size


class _OnePair:
    """Data, as far as shapes depend on them."""

    def __init__(self):
        self.longest = {"source": 1, "target": 1}

    def __len__(self) -> int:
        return 1

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, np.ndarray]]:
        token = np.array([FIRST_TEXT_ID], np.int32)
        return [dict.fromkeys(("source", "target", "l2r", "r2l"), token) for _ in indices]


@dataclasses.dataclass(frozen=True)
class Roofline:
    """The least time that a program takes on a chip, by each of its limits.

    Attributes:
        compute: seconds of matrix products at the peak rate, which is that of bfloat16 whatever the
            program's dtype: in float32 they take twice as long at least.
        memory: seconds of traffic with main memory.
        interconnect: seconds of sending.
    """

    compute: float
    memory: float
    interconnect: float

    @classmethod
    def of(cls, work: hlo.Work, chip: Chip) -> "Roofline":
        """Of this work on this chip."""
        return cls(
            work.flops / chip.flops, work.bytes / chip.bandwidth, work.sent / chip.interconnect
        )

    @property
    def bound(self) -> str:
        """Which limit is met first."""
        return max(dataclasses.asdict(self).items(), key=lambda item: item[1])[0]

    @property
    def seconds(self) -> float:
        """If all three went on at once, and nothing else took time."""
        return max(self.compute, self.memory, self.interconnect)


def vocabularies(experiment: Experiment) -> tuple[Vocabulary, Vocabulary]:
    """Of source and target, by the sizes that the experiment asks for."""
    source = experiment.data.source_vocabulary
    target = source if experiment.joint_vocabulary else experiment.data.target_vocabulary
    assert target is not None
    return SizeOnly(source.size), SizeOnly(target.size)


def update(experiment: Experiment, devices: Sequence[jax.Device]) -> dict[str, Any]:
    """Compiles the update on all devices and says what it takes, see `_report`.

    Raises:
        ConfigError: devices, rows or model cannot be divided so.
    """
    trainer = experiment.make_trainer(*vocabularies(experiment))
    partitioner = experiment.make_partitioner(trainer, devices)
    batch = next(
        pipeline.validation_batches(
            _OnePair(), experiment.streams, experiment.batches, experiment.partner
        )
    )
    state = partitioner.shapes()
    parts = {
        "parameters": _bytes_each(state.params),
        "optimizer": _bytes_each(state.optimizer),
        "average": _bytes_each(state.ema),
    }
    report = _report(partitioner.lower(batch), devices, parts, sum(parts.values()))
    labels = experiment.batches.rows * experiment.batches.target_length
    report["target_tokens"] = labels * len(experiment.streams.directions)
    if isinstance(experiment.model, TransformerConfig):
        needed = update_flops(experiment, trainer.model.target_vocabulary)
        report["flops_needed"] = needed / len(devices)
    return report


def search(
    experiment: Experiment, devices: Sequence[jax.Device], source_tokens: int
) -> dict[str, Any]:
    """Compiles the search of a full batch on the devices of one process, see `_report`.

    Each process searches sentences of its own.
    """
    own = [device for device in devices if device.process_index == devices[0].process_index]
    source, target = vocabularies(experiment)
    model = experiment.make_model(source, target)
    init = jax.eval_shape(model.init, jax.random.key(0), model.smallest_batch())
    generator = Generator(
        model,
        init["params"],
        experiment.streams,
        source,
        target,
        experiment.max_source_length,
        experiment.evaluation.batch_tokens,
        own,
    )
    lowered = generator.lower_search(source_tokens, experiment.search)
    taken = _bytes_each(lowered.variables)
    parts = {
        "parameters": _bytes_each(init["params"]),
        "prepared": taken - _bytes_each(_shared(init["params"], lowered.variables["params"])),
    }
    report = _report(lowered.program, own, parts, taken, lowered.steps)
    return {**report, "sentences": lowered.sentences, "rounds": lowered.steps}


def _report(
    lowered: jax.stages.Lowered,
    devices: Sequence[jax.Device],
    parts: dict[str, int],
    taken: int,
    open_rounds: int = 1,
) -> dict[str, Any]:
    """Compiles; what a device holds and does, and what bounds it.

    Args:
        lowered: the program.
        devices: that it is for.
        parts: bytes of what each device holds beside the program, by name.
        taken: bytes of those parts that are arguments of the program.
        open_rounds: see `hlo.work`.

    Returns:
        `devices`, `memory` in bytes by part with `total` and `chip`; `fits`; and, if it does,
        `compile_seconds`, `work` and `roofline`; or `why` these are not known.
    """
    chip = CHIPS[devices[0].device_kind]
    start = time.perf_counter()
    head: dict[str, Any] = {"devices": len(devices)}
    try:
        compiled = lowered.compile(compiler_options(devices[0]))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        used = re.search(r"Used ([\d.]+)([KMG]) of", str(error))
        total = float(used[1]) * 1024 ** " KMG".index(used[2]) if used else None
        needed = {**parts, "total": total, "chip": chip.memory}
        return {**head, "fits": False, "memory": needed, "why": str(error).splitlines()[0]}
    seconds = time.perf_counter() - start
    held = compiled.memory_analysis()
    assert held is not None
    rest = held.argument_size_in_bytes - taken
    # Results that take their arguments' place take no room of their own.
    results = held.output_size_in_bytes - held.alias_size_in_bytes
    room: dict[str, float] = {
        **parts,
        "batch": rest,
        "results": results,
        "temporary": held.temp_size_in_bytes,
        "program": held.generated_code_size_in_bytes,
    }
    head |= {
        "fits": sum(room.values()) <= chip.memory,
        "compile_seconds": seconds,
        "memory": {**room, "total": sum(room.values()), "chip": chip.memory},
    }
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError as error:
        # libtpu writes programs that an older jaxlib does not know how to read.
        why = f"libtpu compiled it, but this jaxlib cannot read the program: {error}"
        return {**head, "why": why}
    assert text is not None
    work = hlo.work(text, len(devices), open_rounds)
    roofline = Roofline.of(work, chip)
    return {
        **head,
        "work": dataclasses.asdict(work),
        "roofline": {
            **dataclasses.asdict(roofline),
            "seconds": roofline.seconds,
            "bound": roofline.bound,
        },
    }


def _shared(params: Any, typed: Any) -> list[Any]:
    """The leaves of the same dtype in both, which `decoding_variables` leaves where they are."""
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(typed), strict=True)
    return [one for one, other in pairs if one.dtype == other.dtype]


def _bytes_each(tree: Any) -> int:
    """Bytes of its leaves on each device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape)
        * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
