"""Slots: which ones streams take and read, and searches whose cache has too few of them.

B rows, Q sentences in the queue, K streams of each way, W ways, M slots.
"""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bidi.models.slots import Room
from bidi.search.coupling import make_coupling
from bidi.search.slots import first_slots, follow, likely_room, whole_room
from tests.search.cases import Case, assert_sentence, search
from tests.search.tables import Sentence

STEPS, ROWS, STREAMS, WAYS = 6, 2, 3, 2
first = jax.jit(first_slots, static_argnums=(0, 1, 2, 3))
follow = jax.jit(follow)


def histories(slots_of_steps, parents_of_steps, ended_of_steps):
    """The slots of what each stream has written, by following its parents: sets by (b, k, w)."""
    shape = slots_of_steps[0].shape
    read = {place: {int(slots_of_steps[0][place])} for place in np.ndindex(shape)}
    rest = zip(slots_of_steps[1:], parents_of_steps, ended_of_steps, strict=True)
    for slot_BKW, parents_BKW, ended_BKW in rest:
        before = read
        read = {}
        for b, k, w in np.ndindex(shape):
            new = set() if ended_BKW[b, k, w] else {int(slot_BKW[b, k, w])}
            read[b, k, w] = before[b, int(parents_BKW[b, k, w]), w] | new
    return read


@pytest.mark.parametrize("slots", [STREAMS, 7, STEPS * STREAMS])
def test_streams_read_what_they_and_their_parents_wrote(slots):
    parents = st.integers(0, STREAMS - 1)
    size = ROWS * STREAMS * WAYS
    step = st.tuples(
        st.lists(parents, min_size=size, max_size=size),
        st.lists(st.booleans(), min_size=size, max_size=size),
    )

    @settings(max_examples=50)
    @given(st.lists(step, min_size=1, max_size=STEPS - 1))
    def check(steps):
        at = first(ROWS, STREAMS, WAYS, slots)
        taken, parents_of_steps, ended_of_steps = [np.asarray(at.slot_BKW)], [], []
        lost_B = np.zeros(ROWS, bool)
        for parents, ended in steps:
            parents_BKW = np.array(parents, np.int32).reshape(ROWS, STREAMS, WAYS)
            ended_BKW = np.array(ended).reshape(parents_BKW.shape)
            read = histories(taken, parents_of_steps, ended_of_steps)
            kept = {
                (b, w): set.union(*(read[b, k, w] for k in parents_BKW[b, :, w]))
                for b, w in np.ndindex(ROWS, WAYS)
            }
            at, short_B = follow(at, parents_BKW, ended_BKW)
            few_B = [any(slots - len(kept[b, w]) < STREAMS for w in range(WAYS)) for b in range(2)]
            np.testing.assert_array_equal(short_B[~lost_B], np.array(few_B)[~lost_B])
            lost_B |= np.asarray(short_B)
            taken.append(np.asarray(at.slot_BKW))
            parents_of_steps.append(parents_BKW)
            ended_of_steps.append(ended_BKW)
            read = histories(taken, parents_of_steps, ended_of_steps)
            for b, k, w in np.ndindex(parents_BKW.shape):
                if lost_B[b]:
                    continue
                assert set(np.flatnonzero(at.seen_BKWM[b, k, w])) == read[b, k, w]
                assert taken[-1][b, k, w] not in kept[b, w]
                assert len({*taken[-1][b, :, w].tolist()}) == STREAMS
                assert at.parents_BKW[b, k, w] == parents_BKW[b, k, w]
        assert slots < STEPS * STREAMS or not lost_B.any()

    check()


CASES = (
    Case("none", 4, 6, 3, ways=("l2r",), min_length=0),
    Case("paired", 6, 6, min_length=0),
    Case("product", 2, 6, 2, texts=(3, 3)),
    Case("joint", 3, 9, 3, min_length=0),
)


def slots_for_every_step(case: Case) -> Room:
    """Exactly as many, none for alignment."""
    coupling, steps = case.search_coupling, case.stream_steps
    return Room(coupling.pairs * steps, (coupling.combined or coupling.pairs) * steps)


def few_slots(case: Case, of: str) -> Room:
    """For half of the steps, if streams and pairs go on as they are."""
    coupling, steps = case.search_coupling, case.stream_steps // 2
    few = Room(coupling.pairs + steps, (coupling.combined or coupling.pairs) + steps)
    return few if of == "all" else dataclasses.replace(case.whole_room, streams=few.streams)


@pytest.mark.parametrize(
    ("case", "of", "rows"),
    [*((case, "all", 2) for case in CASES), (CASES[2], "streams", 2), (CASES[1], "all", 5)],
    ids=lambda value: f"{value.coupling}{value.beam}" if isinstance(value, Case) else str(value),
)
def test_slots_for_every_step_are_enough_and_too_few_change_no_sentence(case, of, rows):
    """But they lose some: a row that lost its sentence goes on with the next one."""
    enough, few, lost = slots_for_every_step(case), few_slots(case, of), []

    @settings(max_examples=25)
    @given(seeds=st.lists(st.integers(0, 2**32 - 1), min_size=7, max_size=7))
    def check(seeds):
        levels = 0 if case.coupling == "product" else 32
        # The hypotheses have as little in common as can be; the last sentences are short.
        sentences = [
            Sentence(seed, levels, 40, case.steps if place < 5 else 1)
            for place, seed in enumerate(seeds)
        ]
        whole = search(case, sentences, rows=rows, room=enough)
        small = search(case, sentences, rows=rows, room=few)
        assert not whole.lost_Q.any()
        for q, sentence in enumerate(sentences):
            answer = case.reference(sentence)
            if not answer.close:
                assert_sentence(whole, q, case, answer)
        assert not small.lost_Q[5:].any()
        lost.extend(small.lost_Q.tolist())
        for field in dataclasses.fields(small):
            if field.name not in ("steps", "lost_Q"):
                mine, expected = getattr(small, field.name), getattr(whole, field.name)
                np.testing.assert_array_equal(
                    mine[~small.lost_Q], expected[~small.lost_Q], err_msg=field.name
                )
        assert (small.steps_Q[small.lost_Q] <= whole.steps_Q[small.lost_Q]).all()
        assert small.steps <= whole.steps

    check()
    assert 0 < sum(lost) < len(lost)


def test_a_search_of_one_hypothesis_needs_a_slot_for_every_step():
    """After the last step all of them are taken."""
    case = Case("none", 1, 6, ways=("l2r",))
    sentences = [Sentence(seed, 32, 40, case.steps) for seed in range(8)]
    result = search(case, sentences, room=slots_for_every_step(case))
    assert not result.lost_Q.any()
    for q, sentence in enumerate(sentences):
        answer = case.reference(sentence)
        if not answer.close:
            assert_sentence(result, q, case, answer)


@pytest.mark.parametrize("name", ["none", "paired", "product", "joint"])
@pytest.mark.parametrize("beam", [2, 4, 8])
def test_rooms(name, beam):
    coupling = make_coupling(name, beam, 2)
    whole, likely = whole_room(coupling, 30, True), likely_room(coupling, 30, True)
    assert whole.pairs >= 30 * coupling.pairs > whole.pairs - 8
    assert 30 < likely.streams <= likely.pairs <= whole.pairs
    assert likely.pairs < whole.pairs or coupling.pairs == 1
    for room in (whole, likely):
        assert room.pairs % 8 == room.streams % 8 == 0
        assert (room.streams < room.pairs) == (name == "product")
    # Where little is written, no more than that.
    assert likely_room(coupling, 1, True) == whole_room(coupling, 1, True)
    # Where nothing is kept of pairs, none for them; but those that are no combinations are streams.
    of_streams = 0 if name == "product" else likely.streams
    assert likely_room(coupling, 30, False) == Room(of_streams, likely.streams)


def test_greedy_search_needs_a_slot_a_step():
    at = first(1, 1, 1, STEPS)
    for step in range(1, STEPS):
        parents_111 = np.zeros((1, 1, 1), np.int32)
        at, short_B = follow(at, parents_111, np.zeros((1, 1, 1), bool))
        assert not short_B.any()
        assert jax.device_get(at.slot_BKW).tolist() == [[[step]]]
        assert jax.device_get(at.seen_BKWM).sum() == step + 1
