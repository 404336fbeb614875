"""Both forms are the same loss; one of them keeps no logits."""

import jax
import numpy as np

from bidi.benchmarking.losses import CHUNKED, PLAIN, Loss, chunked, plain
from bidi.provenance import CompileMeter
from bidi.training import chunks
from tests.training.tiny import assert_trees_close

B, W, T, D, V = 2, 2, 8, 4, 50


def test_the_forms_give_the_same_in_other_room(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_TOKENS", 4)
    rng = np.random.default_rng(0)
    arguments = (
        rng.normal(size=(B, W, T, D)).astype("f4"),
        rng.normal(size=(V, D)).astype("f4"),
        rng.integers(V, size=(B, W, T)),
        rng.random((B, W, T)).astype("f4"),
    )
    meter = CompileMeter()
    losses = {
        name: Loss(form, jax.tree.map(jax.numpy.asarray, arguments), 0.1, meter)
        for name, form in ((CHUNKED, chunked), (PLAIN, plain))
    }
    assert_trees_close(losses[CHUNKED].run(), losses[PLAIN].run(), rtol=1e-4, atol=1e-5)
    whole = B * W * T * V * 4
    assert losses[CHUNKED].memory["temporary"] < whole <= losses[PLAIN].memory["temporary"]
    assert losses[CHUNKED].memory["arguments"] == losses[PLAIN].memory["arguments"]
