"""One attention for history and future, the masks it reads, and what joins the two.

Letters: B batch, P pairs, W ways, T target steps, U those of the other way, S source steps
or slots of the cache, H heads, E head width, D model; N any leading axes, X all but the last two.
"""

from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from bidi.models.axes import constrain
from bidi.models.dense import Dense
from bidi.models.dropout import Dropout

FusionName = Literal["tanh", "linear", "gate", "concat"]
Attend = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def attend(q_NHTE: jax.Array, k_NHSE: jax.Array, v_NHSE: jax.Array, mask: jax.Array) -> jax.Array:
    """Scaled dot-product attention with a float32 softmax.

    Args:
        q_NHTE: queries; any leading axes N, the same for all.
        k_NHSE: keys.
        v_NHSE: values.
        mask: bool, broadcastable to [N, H, T, S], true where a query sees a key.

    Returns:
        [N, H, T, E]; exactly zero for a query that sees nothing.
    """
    return _average(_queries_first(_scaled(q_NHTE), k_NHSE), v_NHSE, mask)


def attend_step(
    q_NHTE: jax.Array, k_NHSE: jax.Array, v_NHSE: jax.Array, mask: jax.Array
) -> jax.Array:
    """`attend` for the few queries of a step of a search."""
    logits_NHTS = jax.lax.platform_dependent(
        _scaled(q_NHTE), k_NHSE, cpu=_keys_first, default=_queries_first
    )
    return _average(logits_NHTS, v_NHSE, mask)


def _keys_first(q_NHTE: jax.Array, k_NHSE: jax.Array) -> jax.Array:
    """Logits [N, H, T, S].

    XLA on a CPU would turn all keys round for a product with the queries on the left; behind the
    barrier it cannot swap the two back. With several batch axes the product would be slower.
    """
    k_XSE, q_XTE = (x.reshape(-1, *x.shape[-2:]) for x in (k_NHSE, q_NHTE))
    logits_XST = jax.lax.optimization_barrier(jnp.einsum("xse,xte->xst", k_XSE, q_XTE))
    return logits_XST.swapaxes(-1, -2).reshape(*q_NHTE.shape[:-1], -1)


def _queries_first(q_NHTE: jax.Array, k_NHSE: jax.Array) -> jax.Array:
    """Logits [N, H, T, S]; keys are turned by themselves, else XLA on a CPU takes twice as long."""
    return jnp.einsum("...te,...es->...ts", q_NHTE, k_NHSE.swapaxes(-1, -2))


def _scaled(q_NHTE: jax.Array) -> jax.Array:
    return q_NHTE * q_NHTE.shape[-1] ** -0.5


def _average(logits_NHTS: jax.Array, v_NHSE: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.einsum("...ts,...se->...te", masked_softmax(logits_NHTS, mask), v_NHSE)


@jax.custom_vjp
def masked_softmax(logits_NHTS: jax.Array, mask: jax.Array) -> jax.Array:
    """The softmax over S, computed in float32, of the dtype of the logits; 0 where masked.

    For the gradient it keeps what it returns, which the product with the values keeps anyway. JAX
    would keep the float32 weights beside it, which are most of what attention moves in bfloat16.
    """
    logits_NHTS, dtype = logits_NHTS.astype(jnp.float32), logits_NHTS.dtype
    logits_NHTS = jnp.where(mask, logits_NHTS, jnp.finfo(jnp.float32).min)
    # Where all is masked the softmax is uniform: the second `where` makes it nothing.
    return jnp.where(mask, jax.nn.softmax(logits_NHTS, axis=-1), 0.0).astype(dtype)


def _forward(logits_NHTS: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    weights_NHTS = masked_softmax(logits_NHTS, mask)
    return weights_NHTS, weights_NHTS


def _backward(weights_NHTS: jax.Array, cotangent_NHTS: jax.Array) -> tuple[jax.Array, None]:
    cotangent_NHTS = cotangent_NHTS.astype(jnp.float32)
    weighted_NHTS = weights_NHTS * cotangent_NHTS
    gradient_NHTS = weighted_NHTS - weights_NHTS * weighted_NHTS.sum(axis=-1, keepdims=True)
    return gradient_NHTS.astype(weights_NHTS.dtype), None


masked_softmax.defvjp(_forward, _backward)


def attend_both(
    q_NWHTE: jax.Array,
    other_q_NWHUE: jax.Array,
    k_NWHSE: jax.Array,
    v_NWHSE: jax.Array,
    own_mask: jax.Array,
    other_mask: jax.Array,
    by: Attend,
) -> tuple[jax.Array, jax.Array]:
    """History and future in one call: each way's keys are read by its own and the other's queries.

    Args:
        q_NWHTE: queries of each way for its own keys; W is the fourth axis from the end.
        other_q_NWHUE: queries of each way for the other's keys.
        k_NWHSE: keys of each way.
        v_NWHSE: values of each way.
        own_mask: bool [N, W, 1, T, S] for the keys of way w: what its own queries see.
        other_mask: bool [N, W, 1, U, S] for the keys of way w: what the other's queries see.
        by: `attend` or `attend_step`.

    Returns:
        What each way reads of itself and of the other, [N, W, H, T, E] and [N, W, H, U, E].
    """
    steps = q_NWHTE.shape[-2]
    queries = jnp.concatenate([q_NWHTE, jnp.flip(other_q_NWHUE, axis=-4)], axis=-2)
    mask = jnp.concatenate([own_mask, other_mask], axis=-2)
    read = by(queries, k_NWHSE, v_NWHSE, mask)
    return read[..., :steps, :], jnp.flip(read[..., steps:, :], axis=-4)


def attend_other(
    q_NWHUE: jax.Array,
    k_NWHSE: jax.Array,
    v_NWHSE: jax.Array,
    other_mask: jax.Array,
    by: Attend,
) -> jax.Array:
    """The future alone, [N, W, H, U, E]; see `attend_both`."""
    return jnp.flip(by(jnp.flip(q_NWHUE, axis=-4), k_NWHSE, v_NWHSE, other_mask), axis=-4)


def history_mask(segments_BPWT: jax.Array) -> jax.Array:
    """Who sees whom within a stream: bool [B, P, W, 1, T, T]."""
    return _causal_mask(segments_BPWT, segments_BPWT)


def future_mask(segments_BPWT: jax.Array) -> jax.Array:
    """For the keys of way w: what the other way's queries see, bool [B, P, W, 1, T, T].

    At step t a stream sees the other's inputs 0 .. t: what it had written before this step
    (SB-NMT's mask, the diagonal included).
    """
    return _causal_mask(jnp.flip(segments_BPWT, axis=2), segments_BPWT)


def _causal_mask(queries_BPWT: jax.Array, keys_BPWT: jax.Array) -> jax.Array:
    steps = queries_BPWT.shape[-1]
    same = queries_BPWT[..., :, None] == keys_BPWT[..., None, :]
    present = keys_BPWT[..., None, :] != 0
    causal = jnp.tril(jnp.ones((steps, steps), bool))[None, None, None]
    return (same & present & causal)[:, :, :, None]


def source_mask(queries_BT: jax.Array, source_segments_BS: jax.Array) -> jax.Array:
    """Who sees which source token: the same segment, not padding. bool [B, 1, T, S]."""
    same = queries_BT[:, :, None] == source_segments_BS[:, None, :]
    return (same & (source_segments_BS[:, None, :] != 0))[:, None]


def split_heads(x_NTD: jax.Array, heads: int) -> jax.Array:
    """[N, T, D] -> [N, H, T, E]."""
    x_NTHE = x_NTD.reshape(*x_NTD.shape[:-1], heads, x_NTD.shape[-1] // heads)
    x_NTHE = constrain(x_NTHE, "rows", *[None] * (x_NTHE.ndim - 3), "heads")
    return x_NTHE.swapaxes(-3, -2)


def merge_heads(x_NHTE: jax.Array) -> jax.Array:
    """[N, H, T, E] -> [N, T, D]."""
    x_NTHE = x_NHTE.swapaxes(-3, -2)
    x_NTD = x_NTHE.reshape(*x_NTHE.shape[:-2], -1)
    return constrain(x_NTD, "rows", *[None] * (x_NTD.ndim - 2), "heads")


class Fusion(nn.Module):
    """Joins what a stream reads of itself with what it reads of the other.

    Attributes:
        kind: `tanh`, h + weight * tanh(f) (SB-NMT); `linear`, h + weight * f; `gate`, r * h + z * f
            with r, z = sigmoid(W [h; f]); `concat`, W [h; f].
        weight: of the future term in `tanh` and `linear`.
        dropout: rate on the future term, in training.
        train: whether dropout is on.
    """

    kind: FusionName
    weight: float
    dropout: float
    train: bool

    @nn.compact
    def __call__(self, history_TD: jax.Array, future_TD: jax.Array) -> jax.Array:
        """Both [..., D] -> [..., D]."""
        future_TD = Dropout(self.dropout, deterministic=not self.train)(future_TD)
        if self.kind == "tanh":
            return history_TD + self.weight * jnp.tanh(future_TD)
        if self.kind == "linear":
            return history_TD + self.weight * future_TD
        size = history_TD.shape[-1]
        both = jnp.concatenate([history_TD, future_TD], axis=-1)
        if self.kind == "concat":
            return Dense(size, use_bias=False, dtype=both.dtype, name="join")(both)
        gates = nn.sigmoid(Dense(2 * size, dtype=both.dtype, name="gates")(both))
        return gates[..., :size] * history_TD + gates[..., size:] * future_TD
