"""A model and batches small enough to compile in a moment.

Letters: B rows, W ways, S source steps, T target steps, D model, V vocabulary.
"""

import flax.linen as nn
import jax
import numpy as np

from bidi.models.dropout import Dropout
from bidi.models.output import Output, project

VOCABULARY, WAYS, LENGTH = 11, 2, 12
# Target tokens of each of 16 rows: very different, so that a mean of means is far from the mean.
TOKENS = (1, 12, 0, 3, 12, 1, 1, 7, 2, 2, 12, 12, 1, 1, 9, 0)


class Bigram(nn.Module):
    """Predicts from the token before and the mean of the source; like the Transformer to call."""

    dropout: float = 0.0

    def __call__(self, batch, train=False):
        return project(*self.unprojected(batch, train))

    @nn.compact
    def unprojected(self, batch, train=False):
        init = nn.initializers.uniform(2.0)  # compiles faster than the defaults
        embed = nn.Embed(VOCABULARY, 6, embedding_init=init)
        source_BD = embed(batch["source"]).mean(axis=1)
        x_BWTD = embed(batch["inputs"]) + source_BD[:, None, None]
        x_BWTD = Dropout(self.dropout, deterministic=not train)(x_BWTD)
        return nn.tanh(x_BWTD - 2.0), Output(self.param("output", init, (VOCABULARY, 6)))


def make_batch(seed: int, tokens=TOKENS) -> dict[str, np.ndarray]:
    """A row for each of `tokens`; what has no weight is random too: it must not matter."""
    rng, rows = np.random.default_rng(seed), len(tokens)
    here_B1T = np.arange(LENGTH) < np.array(tokens)[:, None, None]
    here_BWT = np.broadcast_to(here_B1T, (rows, WAYS, LENGTH))

    def integers(*shape):
        return rng.integers(VOCABULARY, size=shape, dtype=np.int32)

    positions_T = np.arange(LENGTH, dtype=np.int32)
    return {
        "source": integers(rows, LENGTH),
        "source_segments": np.ones((rows, LENGTH), np.int32),
        "source_positions": np.tile(positions_T, (rows, 1)),
        "inputs": integers(rows, WAYS, LENGTH),
        "labels": integers(rows, WAYS, LENGTH),
        "segments": here_BWT.astype(np.int32),
        "positions": np.tile(positions_T, (rows, WAYS, 1)),
        "weights": here_BWT.astype(np.float32),
    }


def assert_trees_close(actual, expected, **tolerance):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), actual, expected)


def assert_trees_equal(actual, expected):
    """Bit for bit."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
