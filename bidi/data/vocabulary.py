"""Vocabularies: sentencepiece models that turn text into token ids and back."""

import dataclasses
import io
import random
from collections.abc import Iterable, Sequence
from typing import Literal

import gin
import numpy as np
import sentencepiece

from bidi.tokens import BOS, EOS, PAD, UNK

_TAGS = ["<l2r>", "<r2l>"]

# The trained model depends on the number of threads, so it is fixed and not the machine's.
_THREADS = 8
# sentencepiece silently leaves out sentences longer than this many bytes; its own default is 4192.
_SENTENCE_BYTES = 1 << 20


@gin.configurable("Vocabulary")
@dataclasses.dataclass(frozen=True)
class VocabularyConfig:
    """What vocabulary to train.

    Attributes:
      model_type: `unigram` or `bpe` (subwords), `char`, or `word` (split at white space).
      size: The largest number of ids, the six special ones included; fewer if the text has fewer.
      character_coverage: Share of the characters of the text that are in the vocabulary; below 1
        only for scripts with very many (0.9995 for Chinese and Japanese).
      normalization: A sentencepiece rule: `nmt_nfkc`, `nfkc`, `nmt_nfkc_cf`, `nfkc_cf`, `identity`.
      max_sentences: Train on at most so many sentences, drawn uniformly and reproducibly.
    """

    model_type: Literal["unigram", "bpe", "char", "word"] = "unigram"
    size: int = 8000
    character_coverage: float = 1.0
    normalization: str = "nmt_nfkc"
    max_sentences: int = 1_000_000


class Vocabulary:
    """A trained sentencepiece model with the special ids of `bidi.tokens`.

    Attributes:
      size: Number of ids; they are 0 .. size - 1.
    """

    def __init__(self, model: bytes):
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.size: int = self._processor.vocab_size()

    def encode(self, text: str) -> np.ndarray:
        """Token ids of a text, int32[n], without any marker; UNK for what the vocabulary lacks."""
        return np.asarray(self._processor.encode(text), np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; markers and padding are left out, UNK is shown as ' ⁇ '."""
        return self._processor.decode([int(i) for i in ids])

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The written form of each id, special ones included."""
        return [self._processor.id_to_piece(int(i)) for i in ids]


def train(config: VocabularyConfig, sentences: Iterable[str]) -> bytes:
    """Trains a vocabulary; the same sentences in the same order give the same bytes.

    Args:
      config: What to train.
      sentences: The text, read once.

    Returns:
      The serialised sentencepiece model, for `Vocabulary` or a `.model` file.

    Raises:
      ValueError: There is no text, or sentencepiece cannot make this vocabulary of it.
    """
    sample = _sample(sentences, config.max_sentences)
    if not any(sentence.strip() for sentence in sample):
        raise ValueError("There is no text to train a vocabulary on.")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sample),
            model_writer=model,
            model_type=config.model_type,
            vocab_size=config.size,
            character_coverage=config.character_coverage,
            normalization_rule_name=config.normalization,
            # Letters have no word boundary to mark; all other types mark the start of words.
            add_dummy_prefix=config.model_type != "char",
            pad_id=PAD,
            unk_id=UNK,
            bos_id=BOS,
            eos_id=EOS,
            control_symbols=_TAGS,
            hard_vocab_limit=False,
            max_sentence_length=_SENTENCE_BYTES,
            num_threads=_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(f"sentencepiece cannot train {config}: {error}") from error
    return model.getvalue()


def _sample(sentences: Iterable[str], count: int) -> Sequence[str]:
    """A uniform sample of at most `count` sentences, in bounded memory."""
    # sentencepiece's own sampling (input_sentence_size) differs from run to run.
    draw = random.Random(0)
    sample: list[str] = []
    for seen, sentence in enumerate(sentences):
        if seen < count:
            sample.append(sentence)
        elif (place := int(draw.random() * (seen + 1))) < count:
            sample[place] = sentence
    return sample
