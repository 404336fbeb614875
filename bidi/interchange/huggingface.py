"""A trained model as a directory that Hugging Face transformers loads, version 5 or newer.

Post-norm models become MarianMTModel, pre-norm ones PegasusForConditionalGeneration; both get a
MarianTokenizer, whose sentencepiece models are ours. Only the safetensors package is needed here.

Where its search differs from ours: it divides by n^alpha, whatever the length penalty (n counts the
end marker in both); every source has the greatest length of the longest; a hypothesis cut off there
competes with those that ended; and it may end too early, see `early_stopping` below. Its layer
normalisation adds 1e-5 to the variance and flax's 1e-6, which moves a log-probability by some 1e-5
a token. It computes in float32, whatever the model's dtype. MarianTokenizer takes `>>xx<<` at the
head of a text for the name of a language; for ours it is text.
"""

import json
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from bidi.data.streams import Direction
from bidi.data.vocabulary import Vocabulary
from bidi.errors import UserError
from bidi.experiment import Experiment
from bidi.interchange.tensors import Tensors, named_tensors
from bidi.tokens import EOS, FIRST_TEXT_ID, PAD, UNK

log = logging.getLogger(__name__)

ARCHITECTURES = {
    "post": ("marian", "MarianMTModel"),
    "pre": ("pegasus", "PegasusForConditionalGeneration"),
}


def export_files(
    experiment: Experiment,
    params: Mapping[str, Any],
    source_model: bytes,
    target_model: bytes,
    direction: Direction,
) -> dict[str, bytes]:
    """The files of the directory, by name.

    Args:
        experiment: what the model was trained with, and how it shall search.
        params: of the model.
        source_model: sentencepiece's, of the source.
        target_model: the same of the target.
        direction: which of the model's streams.

    Raises:
        UserError: the streams read each other, or there is a `CopyPrior`.
        ConfigError: it is no Transformer.
        ModuleNotFoundError: the package safetensors is missing.
    """
    model = experiment.transformer
    if model.interaction != "none":
        raise UserError(
            f"the directions of this model read each other (Transformer.interaction = "
            f"{model.interaction!r}), which transformers has no model for: export one "
            "that was trained with 'none'"
        )
    if model.copy_prior:
        raise UserError(
            "this model adds a prior of its source's words (Transformer.copy_prior = True), which "
            "transformers has no model for: export one that was trained without"
        )
    source, target = Vocabulary(source_model), Vocabulary(target_model)
    way = experiment.streams.directions.index(direction)
    joint = experiment.joint_vocabulary
    tensors = named_tensors(params, model, way, _positions(experiment))
    vocabularies = (
        {"vocab.json": source} if joint else {"vocab.json": source, "target_vocab.json": target}
    )
    texts = {
        "config.json": _config(experiment, way, source.size, target.size, joint),
        "generation_config.json": _generation_config(experiment, way),
        "tokenizer_config.json": _tokenizer_config(experiment, source, joint),
        **{name: _ids(vocabulary) for name, vocabulary in vocabularies.items()},
    }
    return {
        **{name: _json(content) for name, content in texts.items()},
        "source.spm": source_model,
        "target.spm": target_model,
        "model.safetensors": _serialised(tensors),
    }


def _positions(experiment: Experiment) -> int:
    """Of the longest source, its end marker included, and the longest output."""
    return max(experiment.max_source_length + 1, _longest_output(experiment))


def _longest_output(experiment: Experiment) -> int:
    longest_source = np.array(experiment.max_source_length)
    return int(experiment.search.max_length(longest_source))


def _config(
    experiment: Experiment, way: int, source_size: int, target_size: int, joint: bool
) -> dict[str, Any]:
    model = experiment.transformer
    model_type, architecture = ARCHITECTURES[model.norm]
    config = {
        "model_type": model_type,
        "architectures": [architecture],
        "is_encoder_decoder": True,
        "d_model": model.model_size,
        "encoder_layers": model.encoder_layers,
        "decoder_layers": model.decoder_layers,
        "encoder_attention_heads": model.heads,
        "decoder_attention_heads": model.heads,
        "encoder_ffn_dim": model.feedforward_size,
        "decoder_ffn_dim": model.feedforward_size,
        "activation_function": "relu",
        "scale_embedding": True,
        "max_position_embeddings": _positions(experiment),
        "dropout": model.dropout,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "pad_token_id": PAD,
        "eos_token_id": experiment.streams.ends[way],
        "decoder_start_token_id": experiment.streams.starts[way],
        # Both architectures force an end marker of their own at the greatest length by default.
        "forced_eos_token_id": None,
    }
    one_table = joint and model.tied_embeddings
    if model_type == "pegasus":
        return config | {
            "vocab_size": max(source_size, target_size),
            "tie_word_embeddings": one_table,
        }
    return config | {
        "vocab_size": source_size,
        "decoder_vocab_size": target_size,
        "share_encoder_decoder_embeddings": one_table,
        "tie_word_embeddings": model.tied_embeddings,
    }


def _generation_config(experiment: Experiment, way: int) -> dict[str, Any]:
    search, end = experiment.search, experiment.streams.ends[way]
    if search.length_penalty == "gnmt" and search.alpha:
        log.warning(
            "transformers knows no GNMT length penalty: the exported model divides by n^%g, not by "
            "((5 + n) / 6)^%g",
            search.alpha,
            search.alpha,
        )
    return {
        "num_beams": search.beam_size,
        "length_penalty": search.alpha,
        # The bound of our search when alpha <= 0. Above, it is a guess that a hypothesis gains
        # nothing by growing; "never" proves it, but searches on to about the greatest length.
        "early_stopping": False,
        "min_new_tokens": search.min_length,
        "max_new_tokens": _longest_output(experiment),
        "suppress_tokens": [token for token in range(FIRST_TEXT_ID) if token != end],
        "pad_token_id": PAD,
        "eos_token_id": end,
        "decoder_start_token_id": experiment.streams.starts[way],
        "forced_eos_token_id": None,
    }


def _tokenizer_config(experiment: Experiment, source: Vocabulary, joint: bool) -> dict[str, Any]:
    pieces = source.pieces(range(FIRST_TEXT_ID))
    return {
        "tokenizer_class": "MarianTokenizer",
        "pad_token": pieces[PAD],
        "unk_token": pieces[UNK],
        "eos_token": pieces[EOS],
        "additional_special_tokens": [
            piece for token, piece in enumerate(pieces) if token not in (PAD, UNK, EOS)
        ],
        "separate_vocabs": not joint,
        "model_max_length": experiment.max_source_length + 1,
        # A text that spells a marker does not mean it.
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
    }


def _ids(vocabulary: Vocabulary) -> dict[str, int]:
    return {piece: token for token, piece in enumerate(vocabulary.pieces(range(vocabulary.size)))}


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _serialised(tensors: Tensors) -> bytes:
    try:
        import safetensors.numpy
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "Models for transformers are written by the package safetensors: "
            "pip install 'bidi[export]'"
        ) from None
    return safetensors.numpy.save(tensors, metadata={"format": "pt"})
