"""`top_k` by blocks against that of jax, which sorts the whole row.

N any leading axes, M entries, C chosen.
"""

import jax
import jax.extend
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bidi.search.top_k import BLOCK, top_k

ROWS = st.builds(
    lambda blocks, off: max(blocks * BLOCK + off, 1), st.integers(0, 20), st.integers(-1, 1)
)


@st.composite
def problems(draw) -> tuple[np.ndarray, int]:
    """Rows of few levels, some entries or all -inf, at times in order; and how many to choose."""
    leading = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    entries = draw(ROWS)
    # Mostly so few that rows are taken by blocks.
    k = draw(st.integers(1, min(entries, 6)) | st.integers(1, entries))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.sampled_from((1, 2, 5, 1000)))
    values = -rng.integers(0, levels, (*leading, entries)).astype(np.float32) / 8
    values[rng.random(values.shape) < draw(st.sampled_from((0, 0.5, 0.99, 1)))] = -np.inf
    order = draw(st.sampled_from(("as drawn", "rising", "falling")))
    if order != "as drawn":
        values = np.sort(values, axis=-1)
    return (values[..., ::-1] if order == "falling" else values), k


@settings(max_examples=80)
@given(problems())
def test_it_is_that_of_jax(problem):
    values_NM, k = problem
    found = jax.jit(top_k, static_argnums=1)(values_NM, k)
    expected = jax.lax.top_k(values_NM, k)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)


def sorted_lengths(entries: int, k: int) -> list[int]:
    """The lengths of the rows that are sorted for it."""
    values_NM = np.zeros((2, 3, entries), np.float32)

    def lengths(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name in ("top_k", "sort"):
                yield equation.invars[0].aval.shape[-1]
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                yield from lengths(inner)

    return sorted(lengths(jax.make_jaxpr(top_k, static_argnums=1)(values_NM, k).jaxpr))


@pytest.mark.parametrize(("blocks", "k"), [(5, 1), (33, 8), (500, 8)])
def test_of_a_long_row_only_the_best_blocks_are_sorted(blocks, k):
    for entries in (blocks * BLOCK, blocks * BLOCK - BLOCK + 1):
        assert sorted_lengths(entries, k) == sorted([k, blocks, k * BLOCK])
    # A row of one block less is sorted whole, if blocks would not spare enough.
    whole = (4 * k) * BLOCK
    assert sorted_lengths(whole, k) == [whole]
