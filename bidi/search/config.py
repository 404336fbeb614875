"""How outputs are searched for."""

import dataclasses

import gin
import numpy as np

from bidi import ranges
from bidi.search.coupling import Coupling, CouplingName, PartnerWeights, make_coupling
from bidi.search.scoring import Penalty


@gin.configurable("Search")
@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """How outputs are searched for.

    Attributes:
        coupling: `none`: each direction has a beam of its own and reads nothing of the other;
            `paired`: the k-th hypothesis of one direction beside the k-th of the other, half of
            the beam each (SB-NMT); `product`: every combination, a token's probability averaged
            over the partners (Su 2019); `joint`: one beam of pairs that meet in the middle, see
            `bidi.search.joint`.
        beam_size: hypotheses of a beam; of both directions together for `paired`.
        partner_weights: for `product`: the partners count alike (`equal`), or by the softmax of
            their own log-probabilities so far (`score`).
        n_best: hypotheses returned of each beam.
        length_penalty: `gnmt` or `plain`, see `scoring.length_penalty`.
        alpha: exponent of the length penalty, any sign.
        min_length: tokens before an output may end.
        max_length_factor: with the next two, the greatest length of an output, its end marker
            included, for a source of S tokens: min(factor * S + offset, cap).
        max_length_offset: see above.
        max_length_cap: see above.
        rank_unfinished: whether hypotheses of a beam that are cut off at the maximum length compete
            by score with those that ended, and so do the best of the beams; else they come after
            them.
    """

    coupling: CouplingName = "paired"
    beam_size: int = 4
    partner_weights: PartnerWeights = "equal"
    n_best: int = 1
    length_penalty: Penalty = "gnmt"
    alpha: float = 0.6
    min_length: int = 1
    max_length_factor: float = 2.0
    max_length_offset: int = 10
    max_length_cap: int = 256
    rank_unfinished: bool = False

    def __post_init__(self):
        ranges.check(self, "Search", "beam_size", "n_best", "max_length_cap", least=1)
        ranges.check(self, "Search", "min_length", "max_length_factor", least=0)

    def make_coupling(self, ways: int) -> Coupling:
        """The coupling for a model of so many directions; ValueError where they do not fit."""
        coupling = make_coupling(self.coupling, self.beam_size, ways, self.partner_weights)
        if self.n_best > coupling.hypotheses:
            raise ValueError(
                f"Search.n_best = {self.n_best}, but each beam has {coupling.hypotheses} "
                f"hypotheses (coupling {self.coupling!r}, beam_size {self.beam_size})"
            )
        return coupling

    def stream_steps(self, max_length: int, ways: int) -> int:
        """Predictions that a stream makes at most, if outputs have at most this length."""
        return -(-max_length // self.make_coupling(ways).streams_of_hypothesis)

    def max_length(self, source_length: np.ndarray) -> np.ndarray:
        """The greatest length of outputs of sources of these lengths; 0 for an empty one."""
        length = np.floor(self.max_length_factor * source_length) + self.max_length_offset
        length = np.clip(length, 1, self.max_length_cap)
        return np.where(source_length > 0, length, 0).astype(np.int32)
