import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bidi.data import vocabulary
from bidi.data.vocabulary import Vocabulary, VocabularyConfig, train
from bidi.tokens import BOS, EOS, L2R, PAD, R2L, UNK

SENTENCES = [f"the {a} {b} runs to a {a}" for a in ("cat", "dog", "bird") for b in ("red", "blue")]
TYPES = ["unigram", "bpe", "char", "word"]


def make(model_type="char", sentences=SENTENCES, **fields):
    return Vocabulary(train(VocabularyConfig(model_type, **fields), sentences))


@pytest.mark.parametrize("model_type", TYPES)
def test_text_survives_and_special_ids_are_never_text(model_type):
    vocabulary = make(model_type)
    for sentence in SENTENCES:
        ids = vocabulary.encode(sentence)
        assert ids.dtype == np.int32
        assert ids.min() > R2L
        assert ids.max() < vocabulary.size
        assert vocabulary.decode(ids) == sentence


def test_special_ids_have_their_places_and_decode_to_nothing():
    vocabulary = make()
    special = [PAD, UNK, BOS, EOS, L2R, R2L]
    assert special == list(range(6))
    assert vocabulary.pieces(special) == ["<pad>", "<unk>", "<s>", "</s>", "<l2r>", "<r2l>"]
    cat = list(vocabulary.encode("cat"))
    assert vocabulary.decode([BOS, L2R, *cat, EOS, R2L, PAD]) == "cat"


def test_what_looks_like_a_marker_in_the_text_is_text():
    text = "<s> <l2r> </s> <pad>"
    vocabulary = make(sentences=[*SENTENCES, "< > / 2 l p s"])
    assert vocabulary.encode(text).min() > R2L
    assert vocabulary.decode(vocabulary.encode(text)) == text


@pytest.mark.parametrize("model_type", ["char", "word"])
def test_unknown_text_becomes_unk(model_type):
    assert UNK in make(model_type).encode("Ω")


def test_characters_are_one_token_each_and_words_one_token_each():
    assert make("char").pieces(make("char").encode("cat")) == ["c", "a", "t"]
    assert len(make("word", ["K AE1 T", "D AO1 G"]).encode("K AO1 G")) == 3


@pytest.mark.parametrize("model_type", TYPES)
def test_training_again_gives_the_same_bytes(model_type):
    config = VocabularyConfig(model_type, size=40, max_sentences=4)
    assert train(config, iter(SENTENCES)) == train(config, iter(SENTENCES))


@given(st.integers(1, 30))
def test_at_most_max_sentences_are_used(count):
    # Each sentence has a character of its own, so the vocabulary's size tells how many were read.
    sentences = [chr(ord("A") + i) for i in range(26)] + ["é", "ü", "ß", "ø"]
    size = make(sentences=sentences, max_sentences=count).size
    assert size == 6 + count


def test_sentences_from_everywhere_are_used():
    used = list(map(int, vocabulary._sample(map(str, range(2000)), 200)))
    assert len(set(used)) == 200
    # The mean of a uniform sample is 1,000 with a deviation of 40.
    assert 850 < np.mean(used) < 1150


def test_rare_characters_may_be_left_out():
    sentences = ["a" * 99 + "Ω"]
    assert UNK not in make(sentences=sentences).encode("Ω")
    assert UNK in make(sentences=sentences, character_coverage=0.98).encode("Ω")


def test_long_sentences_are_not_left_out():
    assert UNK not in make(sentences=["a b", "z" * 5000]).encode("z")


def test_a_vocabulary_too_small_for_its_text_is_an_error():
    with pytest.raises(ValueError, match=r"size=8.*required_chars"):
        make("unigram", size=8)


def test_unknown_normalization_is_an_error():
    with pytest.raises(ValueError, match="nmt_nfk'"):
        make(normalization="nmt_nfk")


@pytest.mark.parametrize("sentences", [[], ["", " "]])
def test_no_text_is_an_error(sentences):
    with pytest.raises(ValueError, match="no text"):
        make(sentences=sentences)


def test_size_bounds_the_vocabulary():
    config = VocabularyConfig("bpe", size=30)
    small, large = (train(dataclasses.replace(config, size=n), SENTENCES) for n in (30, 50))
    assert Vocabulary(small).size == 30 < Vocabulary(large).size
