"""Which data an experiment is about."""

import dataclasses

import gin

from bidi import ranges
from bidi.data.sources import ParallelText
from bidi.data.tfds import Tfds
from bidi.data.vocabulary import VocabularyConfig


@gin.configurable("Data")
@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Data to prepare, and where.

    Attributes:
      directory: Where the prepared data are or will be; may contain `$VAR` and `~`.
      source: Where the examples come from.
      source_vocabulary: Trained on the sources of the training split.
      target_vocabulary: Trained on its targets; None: one joint vocabulary, trained on both.
      max_source_length: Pairs with more source tokens (without marker) are dropped and counted.
      max_target_length: The same for target tokens.
      truncate_source: Longer sources are cut to `max_source_length` instead, and counted: for
        titles, whose texts say first what matters. A search cuts its sources alike.
    """

    directory: str = gin.REQUIRED
    source: ParallelText | Tfds = gin.REQUIRED
    source_vocabulary: VocabularyConfig = dataclasses.field(default_factory=VocabularyConfig)
    target_vocabulary: VocabularyConfig | None = None
    max_source_length: int = 256
    max_target_length: int = 256
    truncate_source: bool = False

    def __post_init__(self):
        ranges.check(self, "Data", "max_source_length", "max_target_length", least=1)
