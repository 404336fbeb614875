"""Steps with a cache that was written as a search writes it, against whole streams.

Pairs go on with the histories of other pairs, which stay where they were written; each row stands
at a step of its own, and its places hold what a former sentence wrote.

B rows, P pairs, W ways, T target steps, I steps of the cache, V vocabulary.
"""

import dataclasses

import jax
import numpy as np
import pytest

from bidi.data.vocabulary import FIRST_TEXT_ID
from tests.models import tiny

ROWS, PAIRS, STEPS, ROOM = 3, 3, 6, 7
SOURCE = tiny.source_batch([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
# The step at which each row drops what it does and begins again.
BEGINS = (0, 2, 5)


@dataclasses.dataclass
class Row:
    """What a search does in one row: histories [P, W] of tokens, and of where they were written."""

    written: list
    origins: list

    @classmethod
    def fresh(cls, ways):
        return cls([[()] * ways for _ in range(PAIRS)], [[()] * ways for _ in range(PAIRS)])

    def go_on(self, rng, together):
        """Every stream of every pair takes a parent's history, and adds a token in its place."""
        ways = len(self.written[0])
        parents_PW = rng.integers(0, PAIRS, (PAIRS, ways))
        if together:
            parents_PW[:] = parents_PW[:, :1]
        tokens_PW = rng.integers(FIRST_TEXT_ID, tiny.TARGETS, (PAIRS, ways)).tolist()
        after = Row.fresh(ways)
        for p, w in np.ndindex(PAIRS, ways):
            parent = parents_PW[p, w]
            after.written[p][w] = (*self.written[parent][w], tokens_PW[p][w])
            after.origins[p][w] = (*self.origins[parent][w], p)
        return after

    def filled(self, histories, beyond):
        """[P, W, T], with something else behind the histories."""
        filled_PWT = beyond.copy()
        for p, w in np.ndindex(beyond.shape[:2]):
            filled_PWT[p, w, : len(histories[p][w])] = histories[p][w]
        return filled_PWT


def random_search(ways, together, seed):
    """Whole streams [I, B, P, W, T] and origins [I, B, P, W, T] of a search; the steps [I, B]."""
    rng = np.random.default_rng(seed)
    rows = [Row.fresh(ways) for _ in range(ROWS)]
    streams, origins, steps = [], [], []
    for i in range(max(BEGINS) + STEPS):
        for b in range(ROWS):
            if i == BEGINS[b] or len(rows[b].written[0][0]) == STEPS:
                rows[b] = Row.fresh(ways)
            rows[b] = rows[b].go_on(rng, together)
        anything = rng.integers(0, PAIRS, (ROWS, PAIRS, ways, ROOM), np.int32)
        streams.append([row.filled(row.written, np.zeros_like(anything[0])) for row in rows])
        origins.append(
            [row.filled(row.origins, other) for row, other in zip(rows, anything, strict=True)]
        )
        steps.append([len(row.written[0][0]) - 1 for row in rows])
    return np.array(streams, np.int32), np.array(origins, np.int32), np.array(steps, np.int32)


# (ways, whether both streams of a pair have the same parent, config): in deeper layers what a
# stream writes depends on the other, so it must be the same one in the whole streams.
SEARCHES = {
    "one way": (1, False, {"interaction": "none", "norm": "post"}),
    "none": (2, False, {"interaction": "none"}),
    "none, own": (2, False, {"interaction": "none", "own_decoders": True}),
    "top": (2, False, {"interaction": "top", "fusion": "gate"}),
    "top, own": (2, False, {"interaction": "top", "fusion": "concat", "own_decoders": True}),
    "one layer": (2, False, {"interaction": "layers", "decoder_layers": 1}),
    "layers": (2, True, {"interaction": "layers", "fusion": "linear", "norm": "post"}),
    "recurrent": (2, False, {"recurrent": True, "interaction": "top"}),
    "layers, own": (2, True, {"interaction": "layers", "fusion": "gate", "own_decoders": True}),
}


@pytest.mark.parametrize("interact", [True, False])
@pytest.mark.parametrize(("ways", "together", "config"), SEARCHES.values(), ids=SEARCHES)
def test_histories_are_read_where_they_were_written(ways, together, config, interact):
    model = tiny.make_model(ways, **config)
    params = tiny.random_params(model)
    streams_IBPWT, origins_IBPWT, step_IB = random_search(ways, together, seed=ways + interact)
    assert len({tuple(steps) for steps in step_IB.tolist()}) > STEPS
    step_IB111 = step_IB[:, :, None, None, None]
    tokens_IBPW = np.take_along_axis(streams_IBPWT, step_IB111, axis=-1)[..., 0]
    found_IBPWV = tiny.decode_steps(
        model, params, SOURCE, (tokens_IBPW, step_IB, origins_IBPWT), interact=interact
    )
    for streams_BPWT, step_B, found_BPWV in zip(streams_IBPWT, step_IB, found_IBPWV, strict=True):
        segments_BPWT = (streams_BPWT != 0).astype(np.int32)
        streams = (streams_BPWT, segments_BPWT, tiny.positions(segments_BPWT))
        logits_BPWTV = tiny.decode(model, params, SOURCE, streams, interact=interact)
        at_BPW1V = np.broadcast_to(
            step_B[:, None, None, None, None], (*streams_BPWT.shape[:3], 1, tiny.TARGETS)
        )
        logits_BPWV = np.take_along_axis(np.asarray(logits_BPWTV), at_BPW1V, axis=3)[:, :, :, 0]
        np.testing.assert_allclose(found_BPWV, jax.nn.log_softmax(logits_BPWV), atol=1e-4)


def test_searches_do_not_write_where_they_read():
    """Or these tests would show nothing: most of a history lies in places of other pairs."""
    _, origins_IBPWT, step_IB = random_search(2, together=False, seed=3)
    own_P11 = np.arange(PAIRS)[:, None, None]
    before = np.arange(ROOM) < step_IB[:, :, None, None, None]
    before = np.broadcast_to(before, origins_IBPWT.shape)
    assert (origins_IBPWT != own_P11)[before].mean() > 0.5
    # The two streams of a pair come from different pairs.
    differ = origins_IBPWT[..., 0, :] != origins_IBPWT[..., 1, :]
    assert differ[before[..., 0, :]].mean() > 0.3
