"""What the batched search is measured against finds what it finds."""

import pytest

from bidi.benchmarking import product
from bidi.provenance import CompileMeter
from bidi.search.config import SearchConfig
from tests.evaluation.tiny_generators import make_generator


@pytest.fixture(scope="module")
def generator():
    model = {"recurrent": True, "interaction": "top", "copy_prior": True, "joint": True}
    return make_generator(**model)


SOURCES = ["vwx", "z", "yyv", "wxyzv"]
SEARCH = SearchConfig("product", 3, max_length_factor=1.0, max_length_offset=3)


def test_all_rows_find_the_same(generator):
    report = product.measure(generator, SEARCH, SOURCES, CompileMeter(), rounds=2)
    assert report["sentences"] == len(SOURCES)
    assert len(report["rows"]) == 4
    assert {row["same"] for row in report["rows"]} == {1.0}
    assert report["rows"][0]["times_as_fast"].median == 1
    assert all(row["milliseconds_per_sentence"].least > 0 for row in report["rows"])


def test_what_differs_is_seen(generator, monkeypatch):
    """Of a search by other logits."""
    monkeypatch.setattr(product, "Article", _Other)
    report = product.measure(generator, SEARCH, SOURCES, CompileMeter(), rounds=1)
    assert [row["same"] for row in report["rows"]] == [1, 0, 0, 0]


class _Other(product.Article):
    def logits(self, source_S, inputs_NWT, last):
        return super().logits(source_S, inputs_NWT, last) / 2
