"""Adam with decoupled weight decay, a warm-up and a decay."""

import dataclasses
from typing import Literal

import gin
import jax
import jax.numpy as jnp
import optax

from bidi import ranges


@gin.configurable("Optimizer")
@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """How parameters are moved.

    Attributes:
        learning_rate: at the end of the warm-up, where it is highest.
        schedule: `inverse_sqrt` (Vaswani et al. 2017, section 5.3) or `cosine` to zero.
        warmup_steps: updates of linear warm-up.
        decay_steps: updates until the cosine reaches zero, warm-up included; only for `cosine`.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled (AdamW), on matrices only; 0 is plain Adam.
        clip_norm: greatest global norm of the gradient; 0 does not clip.
    """

    learning_rate: float = 1e-3
    schedule: Literal["inverse_sqrt", "cosine"] = "inverse_sqrt"
    warmup_steps: int = 1000
    decay_steps: int | None = None
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-9
    weight_decay: float = 0.0
    clip_norm: float = 1.0

    def __post_init__(self):
        numbers = ("learning_rate", "warmup_steps", "weight_decay", "clip_norm")
        ranges.check(self, "Optimizer", *numbers, least=0)
        # A gradient of 0 divides 0 by it.
        ranges.check(self, "Optimizer", "eps", least=1e-20)
        ranges.check(self, "Optimizer", "b1", "b2", least=0, below=1)
        if (self.schedule == "cosine") != (self.decay_steps is not None):
            raise ValueError(
                f"Optimizer.schedule = {self.schedule!r} with Optimizer.decay_steps = "
                f"{self.decay_steps}: 'cosine' needs decay_steps, 'inverse_sqrt' has none"
            )

        if self.decay_steps is not None and self.decay_steps <= self.warmup_steps:
            raise ValueError(
                f"Optimizer.decay_steps = {self.decay_steps} includes the warm-up, so it must be "
                f"more than Optimizer.warmup_steps = {self.warmup_steps}"
            )

    def learning_rates(self) -> optax.Schedule:
        """The learning rate of an update, a pure function of its number."""
        if self.schedule == "cosine":
            return optax.warmup_cosine_decay_schedule(
                0.0, self.learning_rate, self.warmup_steps, self.decay_steps
            )
        warmup = max(self.warmup_steps, 1)

        def inverse_sqrt(step):
            step = jnp.maximum(step, 1)
            return self.learning_rate * jnp.minimum(step / warmup, jnp.sqrt(warmup / step))

        return inverse_sqrt

    def make(self) -> optax.GradientTransformation:
        """The optimiser."""
        adam = optax.adamw(
            self.learning_rates(),
            b1=self.b1,
            b2=self.b2,
            eps=self.eps,
            weight_decay=self.weight_decay,
            mask=_matrices,
        )
        if not self.clip_norm:
            return adam
        return optax.chain(optax.clip_by_global_norm(self.clip_norm), adam)


def _matrices(params: dict) -> dict:
    """Which parameters are matrices, by name: a bias or scale of own decoders has two axes too."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key in ("kernel", "embedding"), params
    )
