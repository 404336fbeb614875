"""How many floating-point operations an update needs, from the model's shape alone.

Counted are matrix products, two operations for each multiplication and addition; they are all but
a few percent. Attention is counted over whole rows, as it is computed on packed rows; what masks
hide is not taken off. What a program computes beyond that is not counted: this is the bound.

Letters: B rows, S source steps, T target steps, W ways, G decoders (1 shared, or W own ones),
D model, F feed-forward, V vocabulary.
"""

import dataclasses

from bidi.data.partner import Partner
from bidi.models.config import TransformerConfig

# A product's two gradients, one for each operand, cost as much as the product each.
_UPDATE_OVER_FORWARD = 3


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a batch looks like to the model.

    Attributes:
        rows: B.
        source_length: S.
        target_length: T.
        ways: W.
        vocabulary: V, of the target.
    """

    rows: int
    source_length: int
    target_length: int
    ways: int
    vocabulary: int


def forward_flops(config: TransformerConfig, shape: Shape) -> dict[str, int]:
    """Operations of one forward pass, by part of the model."""
    d, f = config.model_size, config.feedforward_size
    source = shape.rows * shape.source_length
    target = shape.rows * shape.target_length * shape.ways
    decoders = shape.ways if config.own_decoders else 1
    interacting_layers = {"none": 0, "top": 0, "layers": config.decoder_layers}[config.interaction]
    top = int(config.interaction == "top")

    # Q, K, V and the output's product; and of each token's query with all keys, then all values.
    dense = 2 * d * (3 * d) + 2 * d * d
    feedforward = 2 * 2 * d * f
    over_source, over_target = 4 * d * shape.source_length, 4 * d * shape.target_length
    fusion = {"tanh": 0, "linear": 0, "concat": 2 * 2 * d * d, "gate": 2 * 2 * d * 2 * d}
    return {
        "encoder": source * config.encoder_layers * (dense + over_source + feedforward),
        "source_keys_values": source * config.decoder_layers * decoders * 2 * d * (2 * d),
        "self_attention": target * config.decoder_layers * (dense + over_target),
        "source_attention": target * config.decoder_layers * (2 * 2 * d * d + over_source),
        "feedforward": target * config.decoder_layers * feedforward,
        "interaction": target * (interacting_layers + top) * (over_target + fusion[config.fusion])
        + target * top * 2 * d * (3 * d),
        "projection": target * 2 * d * shape.vocabulary,
    }


def guesses_flops(config: TransformerConfig, shape: Shape) -> int:
    """What predicted partners add to an update, see `bidi.training.partner`.

    A pass without interaction and without gradient; and each stream once more, as a partner: what
    it does after it was read for the last time is not needed.
    """
    in_layers = config.interaction == "layers"
    if not in_layers:
        config = dataclasses.replace(config, fusion="tanh")  # a partner joins nothing at the top
    parts = forward_flops(config, shape)
    of_layers = parts["source_attention"] + parts["feedforward"]
    guessing = parts["self_attention"] + of_layers + parts["projection"]
    not_needed = of_layers // config.decoder_layers if in_layers else 0
    read = parts["self_attention"] + parts["interaction"] + of_layers - not_needed
    return guessing + _UPDATE_OVER_FORWARD * read


def update_flops(config: TransformerConfig, shape: Shape, partner: Partner) -> int:
    """Operations of one update: the forward pass, the gradients of its products, guesses."""
    once = _UPDATE_OVER_FORWARD * sum(forward_flops(config, shape).values())
    return once + (guesses_flops(config, shape) if partner.kind == "predicted" else 0)
