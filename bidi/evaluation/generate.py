"""A trained model at work: texts in, hypotheses out; and log-probabilities of given outputs."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from bidi import distributed
from bidi.data.streams import Streams
from bidi.data.vocabulary import Vocabulary
from bidi.evaluation.batching import Batching, usual_tokens
from bidi.evaluation.found import Found, Hypothesis, Tally
from bidi.evaluation.pricing import Priced, Pricing
from bidi.evaluation.searching import LoweredSearch, Searching
from bidi.models.model import Model
from bidi.search.config import SearchConfig
from bidi.tokens import EOS
from bidi.training.checkpoints import checksum


class Generator:
    """A model, its parameters and its vocabularies.

    Attributes:
        model: the module.
        streams: what the model writes.
        target_vocabulary: of its outputs.
        params: the parameters.
    """

    def __init__(
        self,
        model: Model,
        params: Any,
        streams: Streams,
        source_vocabulary: Vocabulary,
        target_vocabulary: Vocabulary,
        max_source_length: int,
        batch_tokens: int | None,
        devices: Sequence[jax.Device] | None = None,
    ):
        """`max_source_length` in tokens, without marker: longer sources are cut.

        `batch_tokens`: see `EvaluationConfig`. Works on the devices of this process, if no others
        are given.
        """
        self.streams, self.target_vocabulary = streams, target_vocabulary
        self.params = params
        self.model, self._source_vocabulary = model, source_vocabulary
        self._max_source_length = max_source_length
        used = jax.local_devices() if devices is None else devices
        tokens = usual_tokens(used) if batch_tokens is None else batch_tokens
        self._batching = Batching(tokens, tuple(used))
        self._searching = Searching(model, params, streams, target_vocabulary.size, self._batching)
        self._pricing = Pricing(model, params, streams, self._batching)

    def anew(self, model: Model | None = None, batch_tokens: int | None = None) -> "Generator":
        """Another with these parameters and nothing compiled yet.

        Args:
            model: a module that has these parameters; this one's unless given.
            batch_tokens: of its batches, see `EvaluationConfig`; as many as here unless given.
        """
        return Generator(
            model or self.model,
            self.params,
            self.streams,
            self._source_vocabulary,
            self.target_vocabulary,
            self._max_source_length,
            batch_tokens or self._batching.batch_tokens,
            self._batching.devices,
        )

    @property
    def identity(self) -> dict[str, Any]:
        """What its outputs depend on besides the search; can be written as JSON."""
        return {
            "checksum": int(checksum(self.params)),
            "model": dataclasses.asdict(self.model.config),
            "streams": dataclasses.asdict(self.streams),
            "max_source_length": self._max_source_length,
        }

    def encode(self, sources: Sequence[str]) -> list[np.ndarray]:
        """Texts as the model reads them: int32 [s], cut to length, with end marker."""
        return self._with_end(self._token_ids(sources), Tally())

    @property
    def interacts(self) -> bool:
        """Whether the model's streams can read each other."""
        return self.model.interacts

    def search(
        self,
        sources: Sequence[str],
        config: SearchConfig,
        tally: Tally | None = None,
        winner_only: bool = False,
    ) -> list[Found]:
        """Searches the best outputs of each source, whatever their order and lengths.

        Like `score` and `price`, it is called by all processes with the same arguments: each does
        its share, on devices of its own, and all get the whole.

        Args:
            sources: texts; an empty one gets no hypotheses.
            config: the search.
            tally: is added to, if given.
            winner_only: whether nothing but the winner is found. A search that would find more, of
                a second beam or by `n_best`, is done sooner.
        """
        own = Tally()
        found = distributed.in_shares(
            lambda mine: self.search_tokens(self._token_ids(mine), config, own, winner_only),
            sources,
        )
        if tally is not None:
            for of_process in distributed.allgather(own):
                tally.add(of_process)
        return found

    def search_tokens(
        self,
        sources: Sequence[np.ndarray],
        config: SearchConfig,
        tally: Tally | None = None,
        winner_only: bool = False,
    ) -> list[Found]:
        """`search` of sources that are token ids, int32 [s] without marker, by this process."""
        tally = Tally() if tally is None else tally
        encoded = self._with_end(sources, tally)
        tally.sentences += len(sources)
        return self._searching.search(encoded, config, tally, winner_only)

    def lower_search(self, source_tokens: int, config: SearchConfig) -> LoweredSearch:
        """`Searching.lower`, of sources of so many tokens without marker."""
        return self._searching.lower(source_tokens + 1, config)

    def score(
        self,
        sources: Sequence[str],
        candidates: Sequence[Sequence[tuple[int, ...]]],
        interact: bool = False,
    ) -> list[dict[str, np.ndarray]]:
        """Log-probabilities of given outputs, end markers included.

        Each direction prices the whole output for itself. Halves are priced together, each beside
        the other: the sum is the output's own log-probability.

        Args:
            sources: texts.
            candidates: of each source, token ids in reading order, without markers.
            interact: whether whole streams read each other. Both then write the candidate, so that
                each sees labels of its own in the other.

        Returns:
            For each source and name of `streams.writers` float32 [candidates of the source].

        Raises:
            ValueError: `interact` is asked of a model without interaction.
        """
        if interact and not self.interacts:
            raise ValueError("interact = True, but this model's streams do not read each other")
        return distributed.in_shares(
            lambda mine, theirs: self._pricing.score(self.encode(mine), theirs, interact),
            sources,
            candidates,
        )

    def price(
        self,
        sources: Sequence[str],
        outputs: Sequence[Sequence[tuple[int, ...]]],
        pairs: Sequence[tuple[int, ...]],
        interact: bool,
    ) -> list[Priced]:
        """Prices the labels of given outputs one by one, each stream beside a given other.

        Args:
            sources: texts.
            outputs: as many of each source, token ids in reading order, without markers.
            pairs: P pairs of streams, each the number of the output that each way's stream writes.
            interact: whether the streams of a pair read each other.
        """
        return distributed.in_shares(
            lambda mine, theirs: self._pricing.price(self.encode(mine), theirs, pairs, interact),
            sources,
            outputs,
        )

    def text(self, hypothesis: Hypothesis | None) -> str:
        """A hypothesis as text of one line; the empty one for none.

        A vocabulary may hold the ends of lines, unless it normalises them (`nmt_*`).
        """
        if hypothesis is None:
            return ""
        return re.sub(r"[\r\n]+", " ", self.target_vocabulary.decode(hypothesis.tokens))

    def _token_ids(self, sources: Sequence[str]) -> list[np.ndarray]:
        return [self._source_vocabulary.encode(source) for source in sources]

    def _with_end(self, sources: Sequence[np.ndarray], tally: Tally) -> list[np.ndarray]:
        """The sources as the model reads them: cut to length, then EOS."""
        limit = self._max_source_length
        tally.truncated += sum(len(ids) > limit for ids in sources)
        return [np.append(ids[:limit], np.int32(EOS)) for ids in sources]
