"""Steps with a cache that was written as a search writes it, against whole streams.

Pairs go on with the histories of other pairs, which stay where they were written; each row stands
at a step of its own, and its slots hold what a former sentence wrote, or streams that were dropped.

B rows, P pairs, W ways, M slots, T target steps, I steps of the cache, V vocabulary.
"""

import dataclasses

import jax
import numpy as np
import pytest

from bidi.models.slots import Slots
from bidi.tokens import FIRST_TEXT_ID
from tests.models import tiny

ROWS, PAIRS, STEPS, SLOTS = 3, 3, 6, 18
SOURCE = tiny.source_batch([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
# The step at which each row drops what it does and begins again.
BEGINS = (0, 2, 5)


@dataclasses.dataclass
class Row:
    """What a search does in one row: of each stream [P, W] its tokens, their slots, its parent."""

    written: list
    slots: list
    parents: list

    @classmethod
    def fresh(cls, ways):
        nothing = [[()] * ways for _ in range(PAIRS)]
        return cls(nothing, nothing, [[0] * ways for _ in range(PAIRS)])

    def go_on(self, rng, together):
        """Every stream of every pair takes a parent's history, and adds a token in a free slot."""
        ways = len(self.written[0])
        parents_PW = rng.integers(0, PAIRS, (PAIRS, ways))
        if together:
            parents_PW[:] = parents_PW[:, :1]
        tokens_PW = rng.integers(FIRST_TEXT_ID, tiny.TARGETS, (PAIRS, ways)).tolist()
        written, slots = ([[()] * ways for _ in range(PAIRS)] for _ in range(2))
        for w in range(ways):
            read = {slot for p in parents_PW[:, w] for slot in self.slots[p][w]}
            free = rng.permutation([slot for slot in range(SLOTS) if slot not in read])
            for p, parent in enumerate(parents_PW[:, w]):
                written[p][w] = (*self.written[parent][w], tokens_PW[p][w])
                slots[p][w] = (*self.slots[parent][w], int(free[p]))
        return Row(written, slots, parents_PW.tolist())

    def streams(self):
        """[P, W, T], 0 behind what is written."""
        streams_PWT = np.zeros((PAIRS, len(self.written[0]), STEPS), np.int32)
        for p, w in np.ndindex(streams_PWT.shape[:2]):
            streams_PWT[p, w, : len(self.written[p][w])] = self.written[p][w]
        return streams_PWT

    def at(self):
        """The slots of the last step."""
        seen_PWM = np.zeros((PAIRS, len(self.slots[0]), SLOTS), bool)
        slot_PW = np.zeros(seen_PWM.shape[:2], np.int32)
        for p, w in np.ndindex(slot_PW.shape):
            seen_PWM[p, w, list(self.slots[p][w])] = True
            slot_PW[p, w] = self.slots[p][w][-1]
        return Slots(slot_PW, seen_PWM, np.array(self.parents, np.int32))


def random_search(ways, together, seed):
    """Whole streams [I, B, P, W, T] and slots [I, B, P, W, ...] of a search; the steps [I, B]."""
    rng = np.random.default_rng(seed)
    rows = [Row.fresh(ways) for _ in range(ROWS)]
    streams, slots, steps = [], [], []
    for i in range(max(BEGINS) + STEPS):
        for b in range(ROWS):
            if i == BEGINS[b] or len(rows[b].written[0][0]) == STEPS:
                rows[b] = Row.fresh(ways)
            rows[b] = rows[b].go_on(rng, together)
        streams.append([row.streams() for row in rows])
        slots.append(jax.tree.map(lambda *each: np.stack(each), *[row.at() for row in rows]))
        steps.append([len(row.written[0][0]) - 1 for row in rows])
    slots_I = jax.tree.map(lambda *each: np.stack(each), *slots)
    return np.array(streams, np.int32), slots_I, np.array(steps, np.int32)


# (ways, whether both streams of a pair have the same parent, config): in deeper layers what a
# stream writes depends on the other, so it must be the same one in the whole streams.
PRIOR = {"copy_prior": True, "joint": True}
UNTIED = {"tied_embeddings": False}
SEARCHES = {
    "one way": (1, False, {"interaction": "layers", "norm": "post"}),
    "none": (2, False, {"interaction": "none"}),
    "none, own": (2, False, {"interaction": "none", "own_decoders": True, "norm": "post"}),
    "top": (2, False, {"interaction": "top", "fusion": "gate", **UNTIED}),
    "top, own": (2, False, {"interaction": "top", "fusion": "concat", "own_decoders": True}),
    "one layer": (2, False, {"interaction": "layers", "decoder_layers": 1}),
    "layers": (2, True, {"interaction": "layers", "fusion": "linear", "norm": "post"}),
    "recurrent": (2, False, {"recurrent": True, "interaction": "top", **PRIOR}),
    "layers, own": (
        2,
        True,
        {"interaction": "layers", "fusion": "gate", "own_decoders": True, **PRIOR},
    ),
}


@pytest.mark.parametrize(
    ("ways", "together", "config", "interact"),
    [
        pytest.param(*search, interact, id=f"{name}, {interact}")
        for name, search in SEARCHES.items()
        for interact in ([True, False] if name in ("top", "layers", "recurrent") else [True])
    ],
)
def test_histories_are_read_where_they_were_written(ways, together, config, interact):
    model = tiny.make_model(ways, **config)
    params = tiny.random_params(model)
    streams_IBPWT, slots_I, step_IB = random_search(ways, together, seed=ways + interact)
    assert len({tuple(steps) for steps in step_IB.tolist()}) > STEPS
    step_IB111 = step_IB[:, :, None, None, None]
    tokens_IBPW = np.take_along_axis(streams_IBPWT, step_IB111, axis=-1)[..., 0]
    found_IBPWV = tiny.decode_steps(
        model, params, SOURCE, (tokens_IBPW, step_IB, slots_I), interact=interact
    )
    assert found_IBPWV.dtype == np.float32
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
    """Or these tests would show nothing: histories are of several streams, in slots anywhere."""
    _, slots_I, step_IB = random_search(2, together=False, seed=3)
    late_IB = step_IB >= STEPS - 2
    assert late_IB.sum() > 3
    # What a stream's way holds that it does not read itself.
    read_by_others_IBPWM = slots_I.seen_BKWM.any(axis=2, keepdims=True) & ~slots_I.seen_BKWM
    assert read_by_others_IBPWM[late_IB].any(axis=-1).mean() > 0.9
    assert len(np.unique(slots_I.slot_BKW)) == SLOTS
    # The two streams of a pair come from different pairs.
    assert (slots_I.parents_BKW[..., 0] != slots_I.parents_BKW[..., 1]).mean() > 0.3
