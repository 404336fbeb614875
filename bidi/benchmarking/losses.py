"""What the loss takes: chunk by chunk, as training has it, beside logits that exist whole.

Letters: B batch, W ways, T target steps, D model, V vocabulary.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bidi.benchmarking import programs
from bidi.benchmarking.rounds import Spread, interleaved, ratios, seconds_of
from bidi.experiment import Experiment
from bidi.models.output import Output, project
from bidi.provenance import CompileMeter
from bidi.training.loss import cross_entropy

CHUNKED, PLAIN = "in chunks", "whole logits"


def chunked(states_BWTD: jax.Array, table_VD: jax.Array, *rest: Any) -> jax.Array:
    """`plain`, as training computes it."""
    return cross_entropy(states_BWTD, Output(table_VD), *rest).loss


def plain(
    states_BWTD: jax.Array,
    table_VD: jax.Array,
    labels_BWT: jax.Array,
    weights_BWT: jax.Array,
    smoothing: float,
) -> jax.Array:
    """The loss by its definition, see `cross_entropy`; its gradient is left to JAX."""
    log_probs_BWTV = jax.nn.log_softmax(project(states_BWTD, Output(table_VD)))
    nll_BWT = -jnp.take_along_axis(log_probs_BWTV, labels_BWT[..., None], axis=-1)[..., 0]
    loss_BWT = (1 - smoothing) * nll_BWT - smoothing * log_probs_BWTV.mean(axis=-1)
    return (loss_BWT * weights_BWT).sum()


class Loss:
    """A form of the loss with its gradient by states and table, compiled.

    Attributes:
        compile_seconds: that this took.
        memory: of the program, see `programs.memory`.
    """

    def __init__(
        self,
        form: Callable[..., jax.Array],
        arguments: tuple[jax.Array, ...],
        smoothing: float,
        compiled: CompileMeter,
    ):
        """Of `form`, see `plain`, for these arguments of it."""
        before = compiled.seconds
        gradient = jax.value_and_grad(form, argnums=(0, 1))
        program = jax.jit(gradient, static_argnums=4).lower(*arguments, smoothing)
        self._program, self._arguments = program.compile(), arguments
        self.compile_seconds = compiled.seconds - before
        self.memory = programs.memory([self._program.runtime_executable()])
        self.run()

    def run(self) -> Any:
        """Loss and gradient."""
        return jax.block_until_ready(self._program(*self._arguments))


def measure(
    experiment: Experiment, vocabulary: int, compiled: CompileMeter, *, rounds: int
) -> dict[str, Any]:
    """Measures both forms in turn on one device, for its share of a microbatch.

    Args:
        experiment: of a Transformer; gives the shapes. Its copy prior is left out.
        vocabulary: V.
        compiled: counts since before.
        rounds: in each, both are measured once.

    Returns:
        `shape` as [B, W, T, D, V]; `forms` by name; `ratio`, time in chunks over time with whole
        logits. What was measured in every round is a `Spread`.
    """
    batches, model = experiment.batches, experiment.transformer
    rows = max(batches.rows // (jax.device_count() * experiment.training.accumulation), 1)
    shape_BWT = (rows, len(experiment.streams.directions), batches.target_length)
    keys = jax.random.split(jax.random.key(0), 3)
    arguments = (
        jax.random.normal(keys[0], (*shape_BWT, model.model_size), model.activation_dtype),
        jax.random.normal(keys[1], (vocabulary, model.model_size)) * model.model_size**-0.5,
        jax.random.randint(keys[2], shape_BWT, 0, vocabulary),
        jnp.ones(shape_BWT),
    )
    smoothing = experiment.training.label_smoothing
    losses = {
        name: Loss(form, arguments, smoothing, compiled)
        for name, form in ((CHUNKED, chunked), (PLAIN, plain))
    }
    runs = {name: functools.partial(seconds_of, loss.run) for name, loss in losses.items()}
    taken = interleaved(rounds, runs, compiled)
    return {
        "shape": [*shape_BWT, model.model_size, vocabulary],
        "dtype": model.dtype,
        "forms": {
            name: {
                "milliseconds": Spread.of(1000 * seconds for seconds in taken[name]),
                "memory": loss.memory,
                "compile_seconds": loss.compile_seconds,
            }
            for name, loss in losses.items()
        },
        "ratio": ratios(taken[CHUNKED], taken[PLAIN]),
    }
