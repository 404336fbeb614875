"""The best tokens by blocks of a vocabulary, against those of whole rows.

B batch, K hypotheses, W ways, V vocabulary, C candidates, T steps.
"""

import contextlib
import functools
import math

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bidi.benchmarking import hlo_text
from bidi.models.prices import BLOCK, Prices
from bidi.search import hypotheses as hyps
from bidi.search import joint
from bidi.search.top_k import pays

BATCH, WAYS = 2, 2
WHOLE = 10 * BLOCK
# In the first row no output may end yet.
AT = hyps.At(np.arange(BATCH), np.zeros(BATCH, bool), min_length=1)


def markers(size: int, forbidden: float, seed: int) -> hyps.Markers:
    """Two ways with ends of their own; this share of the tokens is written by neither or one."""
    rng = np.random.default_rng(seed)
    allowed_WV = rng.random((WAYS, size)) >= forbidden
    ends = tuple(rng.choice(size, WAYS).tolist())
    allowed_WV[range(WAYS), ends] = True
    return hyps.Markers(("l2r", "r2l"), (0, 0), ends, allowed_WV)


def problem(size: int, beam: int, levels: int, dead: float, seed: int):
    """Alive hypotheses and their prices, with few levels if so asked."""
    rng = np.random.default_rng(seed)
    alive_BWK = -rng.integers(0, levels, (BATCH, WAYS, beam)).astype(np.float32) / 8
    dead_BWK = rng.random(alive_BWK.shape) < dead
    alive_BWK[dead_BWK] = -np.inf
    logits_BKWV = rng.integers(-levels, levels, (BATCH, beam, WAYS, size)).astype(np.float32) / 8
    # Whatever the dead hold, no one is to see it.
    logits_BKWV[dead_BWK.swapaxes(1, 2)] = np.nan
    log_sum_BKW = rng.integers(0, 8, logits_BKWV.shape[:-1]).astype(np.float32) / 8
    alive = hyps.Alive(jnp.zeros((BATCH, WAYS, beam, 1), jnp.int32), jnp.asarray(alive_BWK))
    prices = Prices(jnp.asarray(logits_BKWV), logits_BKWV.max(axis=-1), log_sum_BKW)
    return alive, prices


@contextlib.contextmanager
def sorted_whole(whole: bool):
    """Within, all rows are sorted whole, if so asked."""
    with pytest.MonkeyPatch.context() as patch:
        if whole:
            patch.setattr("bidi.search.top_k.pays", lambda *_: False)
        yield


@functools.cache
def compiled(size: int, beam: int, forbidden: float, by_blocks: bool):
    marked = markers(size, forbidden, beam)
    assert pays(beam * size, 2 * beam)

    def best(alive, prices):
        with sorted_whole(not by_blocks):
            return hyps.best_tokens(alive, prices, AT, marked)

    return jax.jit(best)


# Sizes, beams and shares of forbidden tokens: few, for each compiles anew.
SHAPES = (
    (WHOLE, 1, 0.002),
    (WHOLE - 1, 2, 0.0),
    (WHOLE - 1, 1, 0.5),
    (WHOLE - BLOCK + 1, 2, 0.002),
    (WHOLE - BLOCK + 1, 2, 1.0),
)


@settings(max_examples=100)
@given(
    shape=st.sampled_from(SHAPES),
    levels=st.sampled_from([1, 2, 40, 4000]),
    dead=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_by_blocks_as_of_whole_rows(shape, levels, dead, seed):
    size, beam, _ = shape
    alive, prices = problem(size, beam, levels, dead, seed)
    found, expected = (compiled(*shape, by_blocks)(alive, prices) for by_blocks in (True, False))
    there_BWC = np.asarray(expected[0]) > -np.inf
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.shape == (BATCH, WAYS, 2 * beam)
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine[there_BWC], theirs[there_BWC])
    log_probs_BWC, parents_BWC, tokens_BWC = found
    assert (log_probs_BWC[~there_BWC] == -np.inf).all()
    # What is no candidate goes on into dead hypotheses: it must be some token of some parent.
    assert ((parents_BWC >= 0) & (parents_BWC < beam)).all()
    assert ((tokens_BWC >= 0) & (tokens_BWC < size)).all()


def test_the_vocabulary_is_passed_over_once():
    """Nothing is added to all logits, nor any of them left out; but where they are padded."""
    alive, prices = problem(WHOLE, 2, 40, 0.0, 0)
    marked = markers(WHOLE, 0.002, 0)

    def large(jaxpr):
        for equation in jaxpr.eqns:
            if any(variable.aval.size >= BATCH * 2 * WAYS * WHOLE for variable in equation.outvars):
                yield equation.primitive.name
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                yield from large(inner)

    program = jax.make_jaxpr(lambda *given: hyps.best_tokens(*given, AT, marked))(alive, prices)
    assert set(large(program.jaxpr)) <= {"reshape", "pad", "jit", "pjit"}


def test_the_greatest_logits_are_found_in_one_pass():
    """Those of blocks and of the whole vocabulary, as XLA compiles both."""
    alive, prices = problem(WHOLE, 2, 40, 0.0, 0)
    marked = markers(WHOLE, 0.002, 0)

    def best(alive, logits):
        return hyps.best_tokens(alive, Prices.of(logits), AT, marked)

    program = jax.jit(best).lower(alive, prices.logits_BPWV).compile().as_text()
    computations, _ = hlo_text.parse(program)
    passes = [
        one.name
        for computation in computations.values()
        for one in computation.instructions.values()
        if one.opcode == "reduce"
        and math.prod(computation.arrays(one.operands[0])[0].shape) >= prices.logits_BPWV.size
        and any(i.opcode == "maximum" for i in computations[one.called[0]].instructions.values())
    ]
    assert len(passes) == 1


@pytest.mark.parametrize("entries", [50, BLOCK, 2 * BLOCK + 1])
def test_prices_are_log_softmax(entries):
    logits = np.random.default_rng(0).normal(0, 20, (2, 3, 2, entries)).astype(np.float32)
    np.testing.assert_array_equal(Prices.of(logits).log_probs(), jax.nn.log_softmax(logits))


@functools.cache
def joint_candidates(size: int, forbidden: float, by_blocks: bool):
    marked, beam = markers(size, forbidden, 0), joint.Joint(3)

    def candidates(alive, prices, last_B, last_tokens_BWK):
        at = hyps.At(jnp.ones(BATCH, jnp.int32), last_B, min_length=3)
        alive = hyps.Alive(last_tokens_BWK[..., None], alive.log_probs_BGK[:, :1])
        with sorted_whole(not by_blocks):
            return beam.candidates(alive, prices, at, marked)

    return jax.jit(candidates), marked


@settings(max_examples=60)
@given(
    shape=st.sampled_from([(18 * BLOCK, 0.002), (18 * BLOCK - 1, 0.5), (17 * BLOCK + 1, 1.0)]),
    levels=st.sampled_from([1, 2, 40, 4000]),
    dead=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_joint_by_blocks_as_of_whole_rows(shape, levels, dead, seed):
    alive, prices = problem(shape[0], 3, levels, dead, seed)
    assert pays(shape[0], 3)
    by_blocks, marked = joint_candidates(*shape, True)
    rng = np.random.default_rng(seed)
    last_BWK = np.full((BATCH, WAYS, 3), 9, np.int32)
    last_BWK[:, 1][rng.random((BATCH, 3)) < 0.3] = marked.ends[1]  # some have met
    arguments = alive, prices, rng.random(BATCH) < 0.3, last_BWK
    found, expected = by_blocks(*arguments), joint_candidates(*shape, False)[0](*arguments)
    np.testing.assert_array_equal(found.log_probs_BGC, expected.log_probs_BGC)
    there_BC = np.asarray(expected.log_probs_BGC)[:, 0] > -np.inf
    for mine, its in zip(
        (found.parents_BGC, found.ends_BGC, found.lengths_BGC, found.tokens_BWC),
        (expected.parents_BGC, expected.ends_BGC, expected.lengths_BGC, expected.tokens_BWC),
        strict=True,
    ):
        there = np.broadcast_to(there_BC[:, None], mine.shape)
        np.testing.assert_array_equal(np.asarray(mine)[there], np.asarray(its)[there])
    assert ((found.tokens_BWC >= 0) & (found.tokens_BWC < shape[0])).all()
