"""Searches whose caches have too little room, and those with what a CPU's have besides."""

import dataclasses
import functools

import pytest

from bidi.evaluation import searching
from bidi.evaluation.found import Tally
from bidi.models import dense
from bidi.models.slots import Room
from bidi.search.beam_search import beam_search
from bidi.search.slots import whole_room
from tests.evaluation.tiny_generators import MODELS, SEARCH, SOURCES, assert_same, make_generator

MODEL = MODELS["tags"]


def test_what_the_cache_has_too_little_room_for_is_searched_again(monkeypatch):
    """Here it has hardly any: only short outputs are found at first."""
    tally, usual = Tally(), Tally()
    generator, sources = make_generator(**MODEL, batch_tokens=256), SOURCES * 4
    expected = generator.search(sources, SEARCH, usual)
    rows = []

    def watched(*args, **named):
        rows.append(named["rows"])
        return beam_search(*args, **named)

    monkeypatch.setattr(searching, "beam_search", watched)
    monkeypatch.setattr(searching, "likely_room", lambda *_: Room(6, 6))
    generator = make_generator(**MODEL, batch_tokens=256)
    assert_same(generator.search(sources, SEARCH, tally), expected)
    # Each of four hypotheses has room for itself, so there are a quarter of the rows.
    assert rows == [4, 1]
    assert (tally.sentences, usual.batches, tally.batches) == (len(sources), 1, 2)
    assert 0 == usual.searched_again < tally.searched_again < len(sources)
    assert tally.row_steps_needed == usual.row_steps_needed
    assert tally.row_steps_run > usual.row_steps_run


@pytest.mark.parametrize(("cap", "batches"), [(99, 2), (15, 4)])
def test_it_is_searched_again_with_longer_ones_where_these_have_more(monkeypatch, cap, batches):
    """Only outputs of over 15 tokens have enough; with the cap, of neither length."""
    tally, usual = Tally(), Tally()
    generator = functools.partial(make_generator, **MODEL, batch_tokens=64, max_source=12)
    search = dataclasses.replace(SEARCH, max_length_cap=cap)
    sources = SOURCES * 4 + ["abcdabcdabcd"] * 3
    monkeypatch.setattr(searching, "likely_room", whole_room)
    expected = generator().search(sources, search, usual)

    def room_of(coupling, steps, keeps_pairs):
        return Room(6, 6) if steps <= 15 else whole_room(coupling, steps, keeps_pairs)

    monkeypatch.setattr(searching, "likely_room", room_of)
    assert_same(generator().search(sources, search, tally), expected)
    assert (usual.batches, tally.batches) == (2, batches)
    assert 0 == usual.searched_again < tally.searched_again < len(sources)
    assert tally.row_steps_needed == usual.row_steps_needed


@pytest.mark.parametrize("name", MODELS)
def test_transposed_kernels_change_nothing(monkeypatch, name):
    expected = make_generator(**MODELS[name]).search(SOURCES, SEARCH)
    monkeypatch.setattr(dense, "LARGE", 1)
    generator = make_generator(**MODELS[name])
    assert_same(generator.search(SOURCES, SEARCH), expected)
    assert "decoder" in generator._searching._variables["decoding"]
