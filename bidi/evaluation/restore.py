"""A trained model from its workdir."""

import json
import pathlib

import jax
import jax.numpy as jnp

from bidi.data.vocabulary import Vocabulary
from bidi.evaluation.generate import Generator
from bidi.experiment import Experiment
from bidi.training.checkpoints import Checkpoints


def restore_generator(
    workdir: str, experiment: Experiment, checkpoint: str
) -> tuple[Generator, int]:
    """The model of a workdir and the step that it was saved at.

    Args:
        workdir: of `bidi.train`.
        experiment: the workdir's.
        checkpoint: `best` (by validation loss), `latest`, or a step.

    Raises:
        FileNotFoundError: there is no such checkpoint.
    """
    path = pathlib.Path(workdir)
    source, target = (
        Vocabulary((path / f"{side}.model").read_bytes()) for side in ("source", "target")
    )
    model = experiment.make_model(source, target)
    checkpoints = Checkpoints(path, experiment.training.keep_checkpoints)
    try:
        step = _step(checkpoints, checkpoint)
        params = checkpoints.restore_params(step, _shapes(model, len(experiment.streams.ends)))
    finally:
        checkpoints.close()
    generator = Generator(
        model,
        params,
        experiment.streams,
        source,
        target,
        experiment.batches.source_length - 1,
        experiment.evaluation,
    )
    return generator, step


def vocabulary_hash(workdir: str) -> str:
    """What two models must share to score each other's outputs."""
    identity = json.loads((pathlib.Path(workdir) / "data.json").read_text())
    return json.dumps(identity["vocabularies"]["target"], sort_keys=True)


def _step(checkpoints: Checkpoints, checkpoint: str) -> int:
    steps = checkpoints.all_steps()
    by_name = {"best": checkpoints.best_step(), "latest": checkpoints.latest_step()}
    step = by_name[checkpoint] if checkpoint in by_name else int(checkpoint)
    # A run stopped before its first validation has a newest checkpoint but no best one.
    step = checkpoints.latest_step() if checkpoint == "best" and step is None else step
    if step not in steps:
        raise FileNotFoundError(
            f"{checkpoints.directory} has no checkpoint {checkpoint!r}; there are: {steps or 'none'}"
        )
    return step


def _shapes(model, ways: int):
    """Shapes of the parameters, on all devices of this process."""
    source, target = jnp.zeros((1, 2), jnp.int32), jnp.zeros((1, ways, 2), jnp.int32)
    batch = {
        **dict.fromkeys(("source", "source_segments", "source_positions"), source),
        **dict.fromkeys(("inputs", "segments", "positions"), target),
    }
    shapes = jax.eval_shape(model.init, jax.random.key(0), batch)["params"]
    mesh = jax.sharding.Mesh(jax.local_devices(), ("devices",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), shapes
    )
