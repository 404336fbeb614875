"""Converts an exported model to CTranslate2: python convert_ctranslate2.py MODEL DIRECTORY.

CTranslate2's own converter takes every MarianMT model to start from a zero embedding and to have
its padding last, as those of the Marian toolkit do; ours start with a marker, and padding is id 0.
"""

import sys

import ctranslate2.converters.transformers as converters


class Loader(converters.MarianMTLoader):
    """Keeps the start marker's embedding, and all ids."""

    def set_decoder(self, spec, decoder):
        """Without the zero embedding."""
        super().set_decoder(spec, decoder)
        spec.start_from_zero_embedding = False

    def set_config(self, config, model, tokenizer):
        """The markers of the model, and the epsilon that its layers have here and in bidi."""
        super().set_config(config, model, tokenizer)
        config.decoder_start_token = tokenizer.convert_ids_to_tokens(
            model.config.decoder_start_token_id
        )
        config.layer_norm_epsilon = model.model.encoder.layers[0].final_layer_norm.eps

    def get_vocabulary(self, model, tokenizer):
        """Every piece at its id."""
        pieces = sorted(tokenizer.get_vocab().items(), key=lambda piece: piece[1])
        return [piece for piece, _ in pieces]

    def _remove_pad_weights(self, spec):
        """Padding stays where it is."""


if __name__ == "__main__":
    converters._MODEL_LOADERS["MarianConfig"] = Loader()
    converters.TransformersConverter(sys.argv[1]).convert(sys.argv[2], force=True)
