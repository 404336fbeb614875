"""The speed of Su 2019's search: the article's own way, and the batched one with what it saves."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from bidi.benchmarking.article import Article
from bidi.benchmarking.rounds import Spread, interleaved, ratios, seconds_of
from bidi.evaluation.found import Found
from bidi.evaluation.generate import Generator
from bidi.models.config import RecurrentConfig
from bidi.models.model import Cache
from bidi.models.recurrent import Recurrent
from bidi.models.recurrent_decoder import Encoded
from bidi.models.slots import Place, Room
from bidi.provenance import CompileMeter
from bidi.search.config import SearchConfig

# Between scores of float32, which numpy adds up in another order.
_TOLERANCE = 1e-3


class PerPair(Recurrent):
    """Computes what a stream remembers once for every pair it stands in, as if that mattered."""

    def step(
        self,
        encoded: Encoded,
        cache: Cache,
        tokens_BPW: jax.Array,
        place: Place,
        interact: bool,
        combined: int | None,
    ) -> tuple[jax.Array, Cache]:
        """See `Model.step`."""
        place = dataclasses.replace(place, streams=place.pairs)
        return super().step(encoded, cache, tokens_BPW, place, interact, None)

    @property
    def keeps_pairs(self) -> bool:
        """See `Model.keeps_pairs`."""
        return True

    def empty_cache(self, batch: int, pairs: int, room: Room, combined: int | None = None) -> Cache:
        """See `Model.empty_cache`."""
        return super().empty_cache(batch, pairs, Room(room.pairs, room.pairs), None)


def measure(
    generator: Generator,
    search: SearchConfig,
    sources: Sequence[str],
    compiled: CompileMeter,
    *,
    rounds: int,
) -> dict[str, Any]:
    """Measures the article's search and ours on the same sentences.

    Args:
        generator: a model with interaction, copy prior and a joint vocabulary, at work.
        search: of coupling `product` with equal weights.
        sources: texts, none empty.
        compiled: counts since before.
        rounds: in each, all are measured once, in turn.

    Returns:
        `rows`: of each way of searching, the article's first, `milliseconds_per_sentence`,
        `times_as_fast` as the article's, and `same`: the share of winners whose score is that of
        the article's winner but for rounding.
    """
    model, config = generator.model, generator.model.config
    if not isinstance(config, RecurrentConfig):
        raise TypeError(f"{type(config).__name__}: the article's model is recurrent")
    article = Article(jax.tree.map(np.asarray, generator.params), config, generator.streams, search)
    per_pair = generator.anew(
        PerPair(config, model.ways, model.target_vocabulary, model.source_vocabulary)
    )
    encoded = generator.encode(sources)
    lengths = search.max_length(np.array([len(ids) - 1 for ids in encoded]))
    searches: dict[str, Callable[[], list[Found]]] = {
        "numpy, one by one": lambda: list(map(article.find, encoded, lengths.tolist())),
        "one by one": lambda: [generator.search([source], search)[0] for source in sources],
        "batches": functools.partial(generator.search, sources, search),
        "batches, streams once a pair": functools.partial(per_pair.search, sources, search),
    }
    found = {name: run() for name, run in searches.items()}
    runs = {name: functools.partial(seconds_of, run) for name, run in searches.items()}
    seconds = interleaved(rounds, runs, compiled)
    first = next(iter(searches))
    return {
        "sentences": len(sources),
        "rows": [
            {
                "name": name,
                "milliseconds_per_sentence": Spread.of(
                    1000 * one / len(sources) for one in seconds[name]
                ),
                "times_as_fast": ratios(seconds[first], seconds[name]),
                "same": float(np.mean(list(map(_is_same, found[first], found[name])))),
            }
            for name in searches
        ],
    }


def _is_same(one: Found, other: Found) -> bool:
    if one.winner is None or other.winner is None:
        return one.winner is other.winner
    return abs(one.winner.score - other.winner.score) < _TOLERANCE
