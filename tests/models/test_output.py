"""The prior over the words of the source against its definition.

B batch, P pairs, W ways, S source steps, T target steps, E examples of a row, V vocabulary.
"""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bidi.models.output import tokens_of
from bidi.tokens import FIRST_TEXT_ID
from tests.models import tiny

ROWS = (
    hnp.arrays(np.int32, (2, 6), elements=st.integers(0, tiny.TARGETS - 1)),
    hnp.arrays(np.int32, (2, 6), elements=st.integers(0, 3)),
)


@settings(max_examples=30, deadline=None)
@given(*ROWS)
def test_tokens_that_occur_in_each_example(source_BS, segments_BS):
    found_BEV = jax.jit(tokens_of, static_argnums=(2, 3))(source_BS, segments_BS, 3, tiny.TARGETS)
    for b, e in np.ndindex(2, 3):
        words = set(source_BS[b, segments_BS[b] == e + 1].tolist()) - set(range(FIRST_TEXT_ID))
        assert set(np.flatnonzero(found_BEV[b, e]).tolist()) == words


@pytest.mark.parametrize(
    "config",
    [{"recurrent": True}, {"tied_embeddings": True}, {"norm": "post"}],
    ids=["recurrent", "pre", "post"],
)
def test_logits_are_the_mean_of_the_models_and_the_prior(config):
    """Whole packed streams, beside those of the model without the prior."""
    config = {"joint": True, "encoder_layers": 1} | config
    model, without = tiny.make_model(copy_prior=True, **config), tiny.make_model(**config)
    params = tiny.random_params(model)
    source = tiny.source_batch([[1, 1, 2, 2, 3, 0], [1, 1, 1, 1, 1, 1]])
    segments_BPWT = np.array([[[[1, 2, 2, 3, 0]] * 2], [[[1, 1, 1, 0, 0]] * 2]])
    streams = tiny.random_streams(segments_BPWT)
    found = tiny.decode(model, params, source, streams, interact=True)
    prior = params.pop("prior")
    plain = jax.device_get(tiny.decode(without, params, source, streams, interact=True))
    for b, p, w, t in np.argwhere(segments_BPWT):
        here_S = source["source_segments"][b] == segments_BPWT[b, p, w, t]
        occurs_V = np.isin(np.arange(tiny.TARGETS), source["source"][b, here_S])
        prior_V = prior["scale"] * occurs_V + prior["bias"]
        expected_V = (plain[b, p, w, t] + prior_V) / 2
        np.testing.assert_allclose(found[b, p, w, t], expected_V, atol=1e-5)
