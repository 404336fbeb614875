"""Whole streams: of many pairs, mirrored, packed and unpacked; steps are in test_slots.py.

B batch, P pairs, W ways, T target steps, V vocabulary.
"""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest

from bidi.data.partner import GOLD, Partner
from bidi.data.pipeline import BatchConfig, validation_batches
from bidi.data.pseudo import BesidePseudo
from bidi.data.streams import Streams
from bidi.models.model import decoding_variables
from bidi.models.output import project
from bidi.models.slots import Room
from bidi.tokens import BOS, EOS, FIRST_TEXT_ID, L2R, PAD, R2L
from bidi.training.loss import cross_entropy
from tests.models import tiny

SOURCE = tiny.source_batch([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
STREAMS = tiny.random_streams(np.ones((2, 3, 2, 6)))
PACKED_SOURCE = tiny.source_batch([[1, 1, 2, 2, 2], [1, 2, 2, 2, 0]])
# The second way's last stream is over a step before the first's.
PACKED = tiny.random_streams(
    [[[[1, 1, 1, 2, 2, 2], [1, 1, 1, 2, 2, 0]]], [[[1, 1, 2, 2, 2, 0], [1, 1, 2, 2, 0, 0]]]]
)


def name(value) -> str:
    return "-".join(map(str, value.values())) if isinstance(value, dict) else str(value)


TOP_GATE = {"interaction": "top", "fusion": "gate", "own_decoders": True, "norm": "post"}
LAYERS_LINEAR = {"interaction": "layers", "fusion": "linear", "norm": "pre"}
LAYERS_CONCAT = {"interaction": "layers", "fusion": "concat", "own_decoders": True}


def test_training_sees_the_first_pair_of_many():
    model = tiny.make_model(**LAYERS_CONCAT)
    params = tiny.random_params(model)
    first = zip(("inputs", "segments", "positions"), (x[:, 0] for x in STREAMS), strict=True)
    trained = jax.jit(model.apply)({"params": params}, SOURCE | dict(first))
    logits = tiny.decode(model, params, SOURCE, STREAMS, interact=True)
    np.testing.assert_allclose(trained, logits[:, 0], atol=1e-4)


def random_outputs(count):
    """Shorter and longer than the targets."""
    rng = np.random.default_rng(1)

    def output():
        return rng.integers(FIRST_TEXT_ID, tiny.TARGETS, rng.integers(0, 9)).astype(np.int32)

    return tiny.ListedPairs([{"l2r": output(), "r2l": output()} for _ in range(count)])


PAIRS, OUTPUTS = tiny.random_pairs(9), random_outputs(9)
PSEUDO, PSEUDO_LEARNT = (
    Partner("pseudo", "somewhere", loss_on_pseudo=loss) for loss in (False, True)
)
BATCHES = BatchConfig(rows=9, source_length=12, target_length=12)


@functools.partial(jax.jit, static_argnames="model")
def _loss_and_gradient(model, params, batch):
    def loss(params):
        states_BWTD, output = model.apply({"params": params}, batch, method="unprojected")
        sums = cross_entropy(states_BWTD, output, batch["labels"], batch["weights"], 0.1)
        return sums.loss, (sums, project(states_BWTD, output))

    (_, (sums, logits_BWTV)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    return sums, logits_BWTV, jax.nn.log_softmax(logits_BWTV), gradient


def loss_and_gradient(model, params, batch):
    """Sums, logits, log-probabilities and the gradient of the summed loss, in numpy."""
    return jax.device_get(_loss_and_gradient(model, params, batch))


def exchange(markers):
    """Token ids with those exchanged by which the directions differ."""
    order_V = np.arange(tiny.TARGETS)
    one, other = {"swap": (BOS, EOS), "tags": (L2R, R2L)}[markers]
    order_V[[one, other]] = other, one
    return order_V


def mirror(params, order_V, own_decoders):
    """Parameters (or their gradient) with token ids and own decoders exchanged."""
    params = dict(params)
    params["target_embedding"] = {"embedding": params["target_embedding"]["embedding"][order_V]}
    if "output" in params:
        params["output"] = {"embedding": params["output"]["embedding"][order_V]}
    if "prior" in params:
        params["prior"] = {key: value[order_V] for key, value in params["prior"].items()}
    if own_decoders:
        params["decoder"] = jax.tree.map(lambda leaf: leaf[::-1], params["decoder"])
    return params


ONE_WAY = {"norm": "pre", "tied_embeddings": True}
LAYERS = {"interaction": "layers", "fusion": "gate", "own_decoders": True}
TOP = {"interaction": "top", "fusion": "tanh", "norm": "post", "tied_embeddings": False}
RECURRENT = {"recurrent": True, "interaction": "top", "copy_prior": True, "joint": True}
MIRRORED = (
    ("r2l", "l2r", "swap", ONE_WAY),
    ("r2l", "l2r", "tags", {"norm": "post", "tied_embeddings": False}),
    ("both", "both", "swap", LAYERS),
    ("both", "both", "tags", TOP),
    # The source has the end marker too, so with `swap` a joint vocabulary is not the same mirrored.
    ("both", "both", "tags", RECURRENT),
    ("both", "both", "swap", RECURRENT | {"copy_prior": False, "joint": False}),
)


@pytest.mark.parametrize(("ways", "mirrored_ways", "markers", "config"), MIRRORED)
def test_the_right_to_left_stream_is_the_mirror(ways, mirrored_ways, markers, config):
    """On reversed targets, the other way round: the same logits, loss and gradient."""
    streams, mirrored_streams = Streams(ways, markers), Streams(mirrored_ways, markers)
    model = tiny.make_model(len(streams.directions), encoder_layers=1, **config)
    order_V, own = exchange(markers), "recurrent" in config or model.config.own_decoders
    params = tiny.random_params(model)

    (batch,) = validation_batches(PAIRS, streams, BATCHES)
    sums, logits_BWTV, _, gradient = loss_and_gradient(model, params, batch)
    (batch,) = validation_batches(PAIRS.reversed(), mirrored_streams, BATCHES)
    mirrored_params = mirror(params, order_V, own)
    mirrored_sums, mirrored_BWTV, _, mirrored_gradient = loss_and_gradient(
        model, mirrored_params, batch
    )

    assert (batch["segments"] > 1).any()
    np.testing.assert_allclose(sums.loss, mirrored_sums.loss, rtol=1e-5)
    real_BWT = batch["segments"] != 0
    np.testing.assert_allclose(
        logits_BWTV[real_BWT], mirrored_BWTV[:, ::-1][..., order_V][real_BWT], atol=1e-4
    )
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=1e-3, rtol=1e-3),
        mirror(gradient, order_V, own),
        mirrored_gradient,
    )


def test_swapping_the_ways_swaps_the_logits():
    """Whatever the streams are, if one decoder serves both."""
    segments_BPWT = np.ones((2, 3, 2, 6))
    segments_BPWT[0, :, 0, 4:] = segments_BPWT[1, 1, 1, 2:] = 0
    streams = tiny.random_streams(segments_BPWT)
    model = tiny.make_model(**LAYERS_LINEAR)
    params = tiny.random_params(model)
    logits = tiny.decode(model, params, SOURCE, streams, interact=True)
    flipped = tuple(np.flip(x, 2) for x in streams)
    flipped_logits = tiny.decode(model, params, SOURCE, flipped, interact=True)
    np.testing.assert_allclose(logits, np.flip(flipped_logits, 2), atol=1e-5)


@pytest.mark.parametrize("config", [TOP_GATE, LAYERS_LINEAR, LAYERS_CONCAT], ids=name)
def test_beside_a_partner_two_pairs_run(config):
    """By hand: each way's own stream beside the other's partner, and the reverse."""
    model = tiny.make_model(**config)
    params = tiny.random_params(model)
    own, segments, positions = (x[:, 0] for x in PACKED)
    partner = np.where(segments == 0, PAD, own[::-1])
    pairs = np.stack(
        [
            np.stack([own[:, 0], partner[:, 1]], axis=1),
            np.stack([partner[:, 0], own[:, 1]], axis=1),
        ],
        axis=1,
    )
    streams = pairs, *(np.stack([x, x], axis=1) for x in (segments, positions))
    expected = tiny.decode(model, params, PACKED_SOURCE, streams, interact=True)
    found = tiny.decode_beside(model, params, PACKED_SOURCE, (own, segments, positions), partner)
    np.testing.assert_allclose(found[:, 0], expected[:, 0, 0], atol=1e-5)
    np.testing.assert_allclose(found[:, 1], expected[:, 1, 1], atol=1e-5)


class ShortSecondWay:
    """The second stream of a target ends a step earlier, as partners may."""

    def length(self, target_length):
        return Streams("both").length(target_length)

    def of_targets(self, targets):
        made = Streams("both").of_targets(targets)
        last_E = made.starts + made.length_E - 1
        made.arrays["inputs"][last_E, 1] = made.arrays["labels"][last_E, 1] = PAD
        made.arrays["weights"][last_E, 1] = 0
        return made


def token_losses(model, params, streams, pack, partner):
    """{source and labels: losses [W, T]}, sums over all batches, rows in use."""
    losses, totals, rows = {}, [], 0
    config = BatchConfig(rows=9, source_length=12, target_length=12, pack=pack)
    pairs = PAIRS if partner is GOLD else BesidePseudo(PAIRS, OUTPUTS)
    for batch in validation_batches(pairs, streams, config, partner):
        sums, _, log_probs, _ = loss_and_gradient(model, params, batch)
        totals.append(sums)
        nll_BWT = -np.take_along_axis(log_probs, batch["labels"][..., None], axis=-1)[..., 0]
        nll_BWT = np.where(batch["weights"] > 0, nll_BWT, 0)
        for row, segments_S in enumerate(batch["source_segments"]):
            rows += segments_S.any()
            for segment in range(1, segments_S.max() + 1):
                source = batch["source"][row, segments_S == segment]
                here_T = (batch["segments"][row] == segment).any(axis=0)
                labels = batch["labels"][row][:, here_T]
                losses[tuple(source), labels.tobytes()] = nll_BWT[row][:, here_T]
    return losses, jax.tree.map(lambda *x: sum(x), *totals), rows


@pytest.mark.parametrize(
    ("streams", "config", "partner"),
    [
        (Streams("both"), LAYERS, GOLD),
        (Streams("both"), LAYERS, PSEUDO),
        (Streams("both"), TOP, PSEUDO_LEARNT),
        (ShortSecondWay(), TOP, GOLD),
        (Streams("l2r"), ONE_WAY, GOLD),
        (Streams("both"), RECURRENT, PSEUDO_LEARNT),
    ],
    ids=["layers", "layers-pseudo", "top-pseudo", "top-short", "one way", "recurrent-pseudo"],
)
def test_packing_changes_no_loss(streams, config, partner):
    model = tiny.make_model(1 if config is ONE_WAY else 2, encoder_layers=1, **config)
    params = tiny.random_params(model)
    packed, packed_sums, packed_rows = token_losses(model, params, streams, True, partner)
    alone, alone_sums, alone_rows = token_losses(model, params, streams, False, partner)
    examples = len(PAIRS) * (1 if partner is GOLD else 2)
    assert packed_rows < alone_rows == len(packed) == len(alone) == examples
    for example, losses_WT in alone.items():
        np.testing.assert_allclose(packed[example], losses_WT, atol=1e-4)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), packed_sums, alone_sums)


def test_what_is_cut_of_a_partner_was_never_read():
    """The gold streams lose the same beside a partner that is whole."""
    model = tiny.make_model(encoder_layers=1, **LAYERS)
    params, pairs = tiny.random_params(model), BesidePseudo(PAIRS, OUTPUTS)
    config = dataclasses.replace(BATCHES, rows=9, pack=False)
    compared = 0
    for cut, whole in zip(
        *(
            validation_batches(pairs, Streams("both"), config, how)
            for how in (PSEUDO, PSEUDO_LEARNT)
        ),
        strict=True,
    ):
        gold_BWT = cut["weights"] > 0
        compared += (whole["segments"] != cut["segments"]).any(axis=(1, 2)).sum()
        (_, _, of_cut, _), (_, _, of_whole, _) = (
            loss_and_gradient(model, params, batch) for batch in (cut, whole)
        )
        np.testing.assert_allclose(of_cut[gold_BWT], of_whole[gold_BWT], atol=1e-4)
    assert compared > 5


TIED, UNTIED = {"tied_embeddings": True}, {"tied_embeddings": False}


@pytest.mark.parametrize(
    ("joint", "config", "sizes"),
    [
        (True, TIED, {"target_embedding": 13}),
        (True, UNTIED, {"target_embedding": 13, "source_embedding": 13, "output": 13}),
        (False, TIED, {"target_embedding": 13, "source_embedding": 11}),
        (False, UNTIED, {"target_embedding": 13, "source_embedding": 11, "output": 13}),
        (True, {"recurrent": True}, {"target_embedding": 13, "output": 13}),
        (
            False,
            {"recurrent": True},
            {"target_embedding": 13, "source_embedding": 11, "output": 13},
        ),
    ],
)
def test_what_is_tied_is_one_matrix(joint, config, sizes):
    params = tiny.random_params(tiny.make_model(joint=joint, decoder_layers=0, **config))
    kept = {key: params[key] for key in params if key not in ("encoder", "decoder")}
    assert {key: len(jax.tree.leaves(value)[0]) for key, value in kept.items()} == sizes


def test_bfloat16_is_near_float32():
    half, full = (
        tiny.make_model(encoder_layers=1, interaction="layers", dtype=dtype)
        for dtype in ("bfloat16", "float32")
    )
    params = tiny.random_params(half)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    exact = tiny.decode(full, params, SOURCE, STREAMS, interact=True)
    near = tiny.decode(half, params, SOURCE, STREAMS, interact=True)
    assert near.dtype == np.float32
    error = np.abs(near - exact)
    assert 0 < error.mean() < 0.03 * exact.std()
    assert error.max() < 0.3 * exact.std()


@pytest.mark.parametrize("tied", [True, False])
def test_softmax_and_logits_are_float32(tied):
    """In a bfloat16 model nothing is exponentiated, and no token priced, in bfloat16."""
    model = tiny.make_model(
        encoder_layers=1, interaction="layers", dtype="bfloat16", tied_embeddings=tied
    )
    params = tiny.random_params(model)
    cache = model.bind({}).empty_cache(2, 3, Room(18, 18))
    assert {leaf.dtype for leaf in jax.tree.leaves(cache)} == {np.dtype(jax.numpy.bfloat16)}

    def step(params, tokens_BPW):
        apply = functools.partial(model.apply, decoding_variables(model, params, "cpu"))
        source = apply(SOURCE, method="start")
        return apply(source, cache, tokens_BPW, tiny.first_place(2, 3, 18), method="decode_step")

    for program in (
        jax.make_jaxpr(step)(params, STREAMS[0][..., 0]),
        jax.make_jaxpr(tiny.decode.__wrapped__, static_argnums=(0, 4))(
            model, params, SOURCE, STREAMS, True
        ),
    ):
        made = re.findall(r":(\w+)\[([\d,]*)\] = (\w+)", str(program))
        assert {dtype for dtype, _, primitive in made if primitive == "exp"} == {"f32"}
        # Not the table turned: it has two axes.
        priced = {dtype for dtype, shape, _ in made if re.search(f",.*,{tiny.TARGETS}$", shape)}
        assert priced - {"bool", "i32"} == {"f32"}


def test_a_step_multiplies_with_the_kernel_that_was_made_for_it():
    model = tiny.make_model()
    variables = decoding_variables(model, tiny.random_params(model), "cpu")
    tokens_BPW = np.ones((2, 1, 2), np.int32)

    @jax.jit
    def largest_logit(variables):
        cache = model.bind({}).empty_cache(2, 1, Room(4, 4))
        source = model.apply(variables, SOURCE, method="start")
        arguments = source, cache, tokens_BPW, tiny.first_place(2, 1, 4)
        prices, _ = model.apply(variables, *arguments, method="decode_step")
        return abs(prices.logits_BPWV).max()

    without = jax.tree.map(jax.numpy.zeros_like, variables["decoding"])
    assert largest_logit(variables) > 0.1
    assert largest_logit(variables | {"decoding": without}) == 0


def test_what_is_computed_anew_has_the_same_gradient():
    """Dropout too: it is drawn a second time."""
    segments = np.ones((2, 2, 4), np.int32)
    batch = tiny.source_batch(np.ones((2, 3), np.int32))
    batch |= {"inputs": segments * 5, "segments": segments, "positions": segments}
    config = {
        "interaction": "layers",
        "own_decoders": True,
        "encoder_layers": 1,
        "decoder_layers": 1,
    }
    models = [tiny.make_model(**config, dropout=0.3, remat=remat) for remat in (False, True)]
    params = tiny.random_params(models[0])

    def loss(params, model):
        rngs = {"dropout": jax.random.key(1)}
        return (model.apply({"params": params}, batch, train=True, rngs=rngs) ** 2).sum()

    # Traced once: that is most of the time.
    traced = [jax.jit(jax.grad(loss), static_argnums=1).trace(params, m) for m in models]
    gradients = [jax.device_get(one.lower().compile()(params)) for one in traced]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * abs(b).max()),
        *gradients,
    )
    assert ["remat" in str(one.jaxpr) for one in traced] == [False, True]
