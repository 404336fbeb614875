"""Logical names of axes, and the one table that says which axes of a mesh divide them.

Without such a mesh, alone or under `jax.pmap`, nothing here does anything.
"""

import math
from typing import Any

import jax
from jax.sharding import PartitionSpec

# Of a mesh: copies of the state; shares of the state, whose devices read other rows too; shares of
# each layer, whose devices read the same rows.
MESH_AXES = ("data", "fsdp", "tensor")

# What divides an axis; an axis that is not named is whole everywhere.
RULES = {
    "rows": ("data", "fsdp"),
    "embed": "fsdp",  # of parameters; of activations it is not named
    "heads": "tensor",
    "feedforward": "tensor",
    "vocabulary": "tensor",
}

# Axes of kernels by the name of their layer; any other kernel is divided along its inputs.
_KERNELS = {
    "q": ("embed", "heads"),
    "kv": ("embed", "heads"),
    "qkv": ("embed", "heads"),
    "out": ("heads", "embed"),
    "feedforward/in": ("embed", "feedforward"),
    "feedforward/out": ("feedforward", "embed"),
}


def parameter_axes(path: tuple[Any, ...]) -> tuple[str | None, ...]:
    """Names of a parameter's last axes; those before them, of own decoders, are not divided.

    Args:
        path: of the parameter in a tree of parameters, or in any that follows one, such as an
            optimiser's state: what comes before the names of layers does not count.
    """
    names = [""] * 3 + [str(getattr(entry, "key", "")) for entry in path]
    above, layer, name = names[-3:]
    if name == "embedding":
        return "vocabulary", "embed"
    if layer == "prior":
        return ("vocabulary",)
    if name not in ("kernel", "bias"):
        return ()
    kernel = _KERNELS.get(f"{above}/{layer}", _KERNELS.get(layer, ("embed", None)))
    if name == "kernel":
        return kernel
    # A kernel that is divided along its inputs gives partial sums: its bias is whole.
    return kernel[1:] if kernel[1] != "embed" else ()


def spec(names: tuple[str | None, ...], ndim: int) -> PartitionSpec:
    """What divides an array whose last axes have these names."""
    divided = [None if name is None else RULES[name] for name in names]
    return PartitionSpec(*[None] * (ndim - len(names)), *divided)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """`x`, divided along its first axes as their names say, and whole along all others."""
    if not _on_mesh():
        return x
    divided = [None if name is None else RULES[name] for name in names]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*divided))


def constrain_like_parameters(tree: Any) -> Any:
    """A tree of the parameters' structure, divided as these are."""
    if not _on_mesh():
        return tree
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.lax.with_sharding_constraint(
            leaf, spec(parameter_axes(path), leaf.ndim)
        ),
        tree,
    )


def row_shards() -> int:
    """Into how many shares rows are divided."""
    if not _on_mesh():
        return 1
    sizes = jax.sharding.get_abstract_mesh().shape
    return math.prod(sizes[axis] for axis in RULES["rows"])


def layer_shards() -> int:
    """Into how many shares a layer's heads and features are divided."""
    return jax.sharding.get_abstract_mesh().shape["tensor"] if _on_mesh() else 1


def steps_as_one_axis(x_TD: jax.Array) -> jax.Array:
    """[..., D] -> [N, D]; but where a mesh divides layers x as it is, or XLA would gather it."""
    return x_TD if layer_shards() > 1 else x_TD.reshape(-1, x_TD.shape[-1])


def _on_mesh() -> bool:
    return jax.sharding.get_abstract_mesh().axis_names == MESH_AXES
