"""The arithmetic against a count of the products in the model's own program."""

import math

import jax
import jax.numpy as jnp
import pytest
from jax.extend import core

from bidi.benchmarking.flops import Shape, forward_flops, update_flops
from bidi.data.partner import Partner
from bidi.models.config import TransformerConfig
from bidi.models.output import project
from bidi.models.transformer import Transformer
from bidi.training.partner import beside_guesses

SHAPE = Shape(rows=2, source_length=5, target_length=7, ways=2, vocabulary=13)
SIZES = {
    "encoder_layers": 1,
    "decoder_layers": 2,
    "model_size": 8,
    "heads": 2,
    "feedforward_size": 12,
}


def counted(jaxpr: core.Jaxpr) -> int:
    """Operations of all matrix products, those of a loop as often as it runs."""
    total = 0
    for equation in jaxpr.eqns:
        assert equation.primitive.name not in ("while", "conv_general_dilated")
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            of_each = math.prod(left[axis] for axis in contracted)
            total += 2 * of_each * math.prod(equation.outvars[0].aval.shape)
        if equation.primitive.name == "cond":  # for each platform one of its branches
            total += max(counted(branch.jaxpr) for branch in equation.params["branches"])
            continue
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                if isinstance(inner, core.ClosedJaxpr):
                    total += times * counted(inner.jaxpr)
                elif isinstance(inner, core.Jaxpr):
                    total += times * counted(inner)
    return total


GOLD, PREDICTED = Partner("gold"), Partner("predicted")


def program(
    config: TransformerConfig, shape: Shape, gradient: bool, partner: Partner = GOLD
) -> core.Jaxpr:
    """The forward pass, or a gradient of it with respect to the parameters."""
    model = Transformer(config, shape.ways, shape.vocabulary, source_vocabulary=11)
    source_BS = jnp.ones((shape.rows, shape.source_length), jnp.int32)
    target_BWT = jnp.ones((shape.rows, shape.ways, shape.target_length), jnp.int32)
    batch = {
        **dict.fromkeys(("source", "source_segments", "source_positions"), source_BS),
        **dict.fromkeys(("inputs", "segments", "positions"), target_BWT),
    }

    def forward(params):
        if partner is PREDICTED:
            return project(*beside_guesses(partner, model, params, batch, None)).sum()
        return model.apply({"params": params}, batch).sum()

    params = jax.eval_shape(model.init, jax.random.key(0), batch)["params"]
    return jax.make_jaxpr(jax.grad(forward) if gradient else forward)(params).jaxpr


# Interactions and fusions, without and with own decoders.
CASES = (
    (False, "none", ["tanh"]),
    (False, "layers", ["tanh", "linear", "gate", "concat"]),
    (False, "top", ["gate"]),
    (True, "none", ["tanh"]),
    (True, "layers", ["concat"]),
    (True, "top", ["linear", "gate"]),
)


def cases():
    for own, interaction, fusions in CASES:
        for fusion in fusions:
            yield TransformerConfig(
                **SIZES, interaction=interaction, fusion=fusion, own_decoders=own
            )


@pytest.mark.parametrize(
    "config", [*cases()], ids=lambda c: f"{c.interaction}-{c.fusion}-{c.own_decoders}"
)
def test_the_bound_is_what_the_model_multiplies(config):
    needed = sum(forward_flops(config, SHAPE).values())
    assert counted(program(config, SHAPE, gradient=False)) == needed
    counted_update = counted(program(config, SHAPE, gradient=True))
    assert counted_update == update_flops(config, SHAPE, GOLD)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("interaction", ["layers", "top"])
def test_the_bound_of_predicted_partners(interaction, own):
    config = TransformerConfig(**SIZES, interaction=interaction, fusion="tanh", own_decoders=own)
    more = 0
    if interaction == "top":  # the first pass makes queries, keys and values that nobody reads
        tokens = SHAPE.rows * SHAPE.ways * SHAPE.target_length
        more = tokens * 2 * config.model_size * 3 * config.model_size
    counted_update = counted(program(config, SHAPE, gradient=True, partner=PREDICTED))
    assert counted_update == update_flops(config, SHAPE, PREDICTED) + more


def test_one_direction():
    shape = Shape(rows=3, source_length=4, target_length=6, ways=1, vocabulary=9)
    config = TransformerConfig(**SIZES, tied_embeddings=False)
    assert counted(program(config, shape, gradient=False)) == sum(
        forward_flops(config, shape).values()
    )


def test_parts_by_hand():
    config = TransformerConfig(
        encoder_layers=1, decoder_layers=1, model_size=2, heads=1, feedforward_size=3
    )
    shape = Shape(rows=1, source_length=1, target_length=1, ways=1, vocabulary=5)
    # Q, K, V, output: 4 products of 2 x 2; scores and sum: 2 of length 2; feed-forward: 2 of 2 x 3.
    assert forward_flops(config, shape) == {
        "encoder": 2 * (16 + 4 + 12),
        "source_keys_values": 2 * 8,
        "self_attention": 2 * (16 + 4),
        "source_attention": 2 * (8 + 4),
        "feedforward": 2 * 12,
        "interaction": 0,
        "projection": 2 * 10,
    }
