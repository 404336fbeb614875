"""One update of the parameters, pure; and the sums that validation needs.

Letters: A microbatches, B batch, W ways, S source steps, T target steps, D model, N devices.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from bidi.data.partner import Partner
from bidi.models.axes import constrain_like_parameters
from bidi.models.model import Batch, Model
from bidi.tokens import PAD
from bidi.training.loss import LossSums, cross_entropy
from bidi.training.partner import Update, beside_guesses


@flax.struct.dataclass
class TrainState:
    """All that an update changes.

    Attributes:
        step: int32, updates made.
        params: the model's parameters, float32.
        optimizer: the optimiser's state.
        ema: exponential moving average of the parameters, or None.
    """

    step: jax.Array
    params: dict
    optimizer: optax.OptState
    ema: dict | None


@flax.struct.dataclass
class Suspects:
    """Rows of an update that by themselves make its loss no finite number.

    Attributes:
        rows: int32, how many there are on all devices.
        source: int32 [N, A, S] (without N where no axis is mapped), source tokens of the first such
            row of each device and microbatch; PAD where there is none.
    """

    rows: jax.Array
    source: jax.Array


@dataclasses.dataclass(frozen=True)
class Trainer:
    """What an update is made of; static, shared by all updates.

    Attributes:
        model: see `bidi.models.model.Model`.
        optimizer: see `bidi.training.optimizer.OptimizerConfig.make`.
        partner: what a stream reads of the other.
        label_smoothing: see `cross_entropy`.
        ema_decay: of the moving average; 0 keeps none.
        skips_nonfinite: whether an update whose loss or gradient is no finite number changes
            nothing but the step.
        prng_impl: what draws an update's random bits, see `TrainingConfig`.
    """

    model: Model
    optimizer: optax.GradientTransformation
    partner: Partner
    label_smoothing: float
    ema_decay: float
    skips_nonfinite: bool = False
    prng_impl: str = "threefry2x32"

    def init(self, rng: jax.Array, batch: Batch) -> TrainState:
        """Fresh parameters; of `batch` only shapes count."""
        params = self.model.init(rng, batch)["params"]
        return TrainState(
            step=jnp.int32(0),
            params=params,
            optimizer=self.optimizer.init(params),
            # A copy: the state is donated, and one buffer cannot be donated twice.
            ema=jax.tree.map(jnp.copy, params) if self.ema_decay else None,
        )

    def with_params(self, state: TrainState, params: dict) -> TrainState:
        """A fresh state that starts with these parameters."""
        ema = jax.tree.map(jnp.copy, params) if self.ema_decay else None
        return dataclasses.replace(state, params=params, ema=ema)

    def train_step(
        self, state: TrainState, batches: Batch, rng: jax.Array, axis: str | None = None
    ) -> tuple[TrainState, dict[str, Any]]:
        """One update.

        Args:
            state: the state before it.
            batches: batch dicts stacked on a leading axis: microbatches whose gradients are added.
            rng: the run's key, threefry2x32; the update's own is made of it and `state.step`.
            axis: name of the mapped axis over which devices add up, if any.

        Returns:
            The state after it, and metrics, equal on all devices: `sums` as in `LossSums`,
            `gradient_norm`, the global one before clipping, and `suspects`, see `Suspects`.
        """
        rng = jax.random.fold_in(rng, state.step)
        if axis is not None:
            rng = jax.random.fold_in(rng, jax.lax.axis_index(axis))

        def add_microbatch(total, numbered_batch):
            number, batch = numbered_batch
            gradient_of = jax.value_and_grad(self._loss, has_aux=True)
            update = Update(self._drawing(jax.random.fold_in(rng, number)), state.step)
            (_, (sums, suspects)), gradient = gradient_of(state.params, batch, update)
            added = sums, constrain_like_parameters(gradient)
            return jax.tree.map(jnp.add, total, added), suspects

        numbers = jnp.arange(jax.tree.leaves(batches)[0].shape[0])
        ways = batches["inputs"].shape[2]
        total, suspects = jax.lax.scan(
            add_microbatch, (_no_sums(ways), _zeros(state.params)), (numbers, batches)
        )
        suspects = Suspects(suspects.rows.sum(), suspects.source)
        sums, gradient = _over_devices(total, axis)
        if axis is not None:
            suspects = Suspects(
                jax.lax.psum(suspects.rows, axis), jax.lax.all_gather(suspects.source, axis)
            )
        # sum(loss) / sum(tokens) over ALL devices and microbatches, divided once.
        tokens = jnp.maximum(sums.tokens_W.sum(), 1.0)
        gradient = jax.tree.map(lambda leaf: leaf / tokens, gradient)
        updates, optimizer = self.optimizer.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        step = state.step + 1
        norm = optax.tree.norm(gradient)
        metrics = {"sums": sums, "gradient_norm": norm, "suspects": suspects}
        new = TrainState(step, params, optimizer, self._average(state.ema, params, step))
        if self.skips_nonfinite:
            # Both are sums over all devices: all decide alike.
            finite = jnp.isfinite(sums.loss) & jnp.isfinite(norm)
            new = jax.tree.map(
                lambda changed, kept: jnp.where(finite, changed, kept),
                new,
                dataclasses.replace(state, step=step),
            )
        return new, metrics

    def evaluate_step(self, params: dict, batch: Batch, axis: str | None = None) -> LossSums:
        """Sums of the unsmoothed loss over all devices.

        Predicted partners are guesses throughout, whatever the schedule, and none is corrupted: of
        all that training shows this is nearest to what search meets, and it chooses checkpoints.
        """
        states_BWTD, output = self._unprojected(params, batch, None)
        sums = cross_entropy(states_BWTD, output, batch["labels"], batch["weights"], 0.0)
        return _over_devices(sums, axis)

    def _loss(
        self, params: dict, batch: Batch, update: Update
    ) -> tuple[jax.Array, tuple[LossSums, Suspects]]:
        states_BWTD, output = self._unprojected(params, batch, update)
        sums = cross_entropy(
            states_BWTD, output, batch["labels"], batch["weights"], self.label_smoothing
        )
        return sums.loss, (sums, _suspects(jax.lax.stop_gradient(states_BWTD), batch["source"]))

    def _unprojected(self, params: dict, batch: Batch, update: Update | None) -> Any:
        """What `Model.unprojected` gives, beside the partner; no update is a validation."""
        if self.partner.kind == "predicted":
            return beside_guesses(self.partner, self.model, params, batch, update)
        rngs = None if update is None else {"dropout": update.rng}
        train = update is not None
        return self.model.apply(
            {"params": params}, batch, train=train, rngs=rngs, method="unprojected"
        )

    def _drawing(self, rng: jax.Array) -> jax.Array:
        """The key by which random bits are drawn, made of a threefry2x32 key."""
        if self.prng_impl == "threefry2x32":
            return rng
        data = jax.random.key_data(jax.random.split(rng))
        return jax.random.wrap_key_data(data.reshape(-1), impl=self.prng_impl)

    def _average(self, ema: dict | None, params: dict, step: jax.Array) -> dict | None:
        if ema is None:
            return None
        # A short memory at first: else the average would hold the random start for long.
        decay = jnp.minimum(self.ema_decay, (1 + step) / (10 + step))
        return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, ema, params)


def _over_devices(tree: Any, axis: str | None) -> Any:
    """The sum over the mapped axis, if any; of a single device, XLA on a CPU would copy it all."""
    if axis is None or jax.lax.axis_size(axis) == 1:
        return tree
    return jax.lax.psum(tree, axis)


def _suspects(states_BWTD: jax.Array, source_BS: jax.Array) -> Suspects:
    """Of one microbatch; the source is [S]."""
    # By the row, not the example: what is no number spreads over all that is attended to.
    bad_B = ~jnp.isfinite(states_BWTD.sum(axis=(1, 2, 3), dtype=jnp.float32))
    first_B = bad_B & (jnp.cumsum(bad_B) == 1)
    source_S = jnp.where(first_B[:, None], source_BS, PAD).sum(axis=0)
    return Suspects(bad_B.sum(), source_S)


def _no_sums(ways: int) -> LossSums:
    zeros_W = jnp.zeros(ways)
    return LossSums(jnp.float32(0), zeros_W, zeros_W, zeros_W)


def _zeros(params: dict) -> dict:
    return jax.tree.map(jnp.zeros_like, params)
