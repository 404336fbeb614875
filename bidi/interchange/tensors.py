"""The parameters of one direction under the names that transformers gives them.

Its MarianMT and PEGASUS models are ours without interaction, post-norm and pre-norm, and name their
layers alike. Only their tables differ: MarianMT knows a vocabulary a side, PEGASUS one of one size.

Letters: D model, F feed-forward, V vocabulary, T positions; a dense layer of theirs is the
transpose of ours.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bidi.models.config import TransformerConfig
from bidi.models.sublayers import sinusoidal_positions

Tensors = dict[str, np.ndarray]

# Added to the logits of ids that only the other side's vocabulary has: no probability is left.
_NEVER = -1e9


def named_tensors(
    params: Mapping[str, Any], config: TransformerConfig, way: int, positions: int
) -> Tensors:
    """Names and renames, fuses nothing and rounds nothing.

    Args:
        params: of a `Transformer` without interaction.
        config: its shape.
        way: which decoder, where each direction has its own.
        positions: rows of the tables of positions.

    Returns:
        float32, what `model.safetensors` holds.
    """
    params = jax.tree.map(np.asarray, params)
    decoder = params["decoder"]
    if config.own_decoders:
        decoder = jax.tree.map(lambda leaf: leaf[way], decoder)
    tensors = _tables(params, config)
    position_TD = np.asarray(sinusoidal_positions(jnp.arange(positions), config.model_size))
    for side in ("encoder", "decoder"):
        tensors[f"model.{side}.embed_positions.weight"] = position_TD
    for index in range(config.encoder_layers):
        layer = params["encoder"][f"layer_{index}"]
        tensors |= _layer(f"model.encoder.layers.{index}", layer, self_attention=layer)
    for index in range(config.decoder_layers):
        layer, name = decoder[f"layers_{index}"], f"model.decoder.layers.{index}"
        tensors |= _layer(name, layer, self_attention=layer["self_attention"])
        for part in ("q", "kv", "out"):
            tensors |= _projections(f"{name}.encoder_attn", part, layer["source_attention"][part])
        tensors |= _norm(f"{name}.encoder_attn_layer_norm", layer["source_attention_norm"])
    if config.norm == "pre":
        tensors |= _norm("model.encoder.layer_norm", params["encoder"]["norm"])
        tensors |= _norm("model.decoder.layer_norm", decoder["norm"])
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def _tables(params: Mapping[str, Any], config: TransformerConfig) -> Tensors:
    """Embeddings [V, D], the output's [V, D] and the bias of the logits [1, V]."""
    target_VD = params["target_embedding"]["embedding"]
    if "source_embedding" not in params:
        bias_1V = np.zeros((1, len(target_VD)), np.float32)
        return {"model.shared.weight": target_VD, "final_logits_bias": bias_1V}
    source_VD = params["source_embedding"]["embedding"]
    tables = {
        "model.encoder.embed_tokens.weight": source_VD,
        "model.decoder.embed_tokens.weight": target_VD,
    }
    if not config.tied_embeddings:
        tables["lm_head.weight"] = params["output"]["embedding"]
    size = len(target_VD)
    if config.norm == "pre":
        size = max(len(source_VD), len(target_VD))
        # PEGASUS ties all tables or none, and has one more, which nothing reads when none are.
        tables = {"lm_head.weight": target_VD, "model.shared.weight": source_VD} | tables
        tables = {name: _with_rows(table_VD, size) for name, table_VD in tables.items()}
    bias_V = np.where(np.arange(size) < len(target_VD), 0.0, _NEVER)
    return {**tables, "final_logits_bias": bias_V.astype(np.float32)[None]}


def _with_rows(table_VD: np.ndarray, rows: int) -> np.ndarray:
    return np.pad(table_VD, ((0, rows - len(table_VD)), (0, 0)))


def _layer(name: str, layer: Mapping[str, Any], self_attention: Mapping[str, Any]) -> Tensors:
    """What layers of encoder and decoder have in common."""
    return {
        **_projections(f"{name}.self_attn", "qkv", self_attention["qkv"]),
        **_projections(f"{name}.self_attn", "out", self_attention["out"]),
        **_norm(f"{name}.self_attn_layer_norm", layer["self_attention_norm"]),
        **_dense(f"{name}.fc1", **layer["feedforward"]["in"]),
        **_dense(f"{name}.fc2", **layer["feedforward"]["out"]),
        **_norm(f"{name}.final_layer_norm", layer["feedforward_norm"]),
    }


def _projections(name: str, part: str, dense: Mapping[str, np.ndarray]) -> Tensors:
    """`out`, or as many projections as `part` has letters, side by side in one dense layer."""
    letters = [part] if part == "out" else list(part)
    kernels, biases = (np.split(dense[key], len(letters), axis=-1) for key in ("kernel", "bias"))
    tensors: Tensors = {}
    for letter, kernel, bias in zip(letters, kernels, biases, strict=True):
        tensors |= _dense(f"{name}.{letter}_proj", kernel, bias)
    return tensors


def _dense(name: str, kernel: np.ndarray, bias: np.ndarray) -> Tensors:
    return {f"{name}.weight": kernel.T, f"{name}.bias": bias}


def _norm(name: str, norm: Mapping[str, np.ndarray]) -> Tensors:
    return {f"{name}.weight": norm["scale"], f"{name}.bias": norm["bias"]}
