"""What transformers computes from an exported directory, in numpy, from its files alone.

Written after transformers' modeling_marian.py and modeling_pegasus.py, for one sentence.

Letters: S source steps, T target steps, D model, H heads, E head width, V vocabulary.
"""

import json

import numpy as np
import safetensors.numpy

EPSILON = 1e-6  # flax's; theirs is 1e-5


class Layout:
    """A model read from the files of an export; `unread` are the tensors not used so far."""

    def __init__(self, files: dict[str, bytes]):
        self.config = json.loads(files["config.json"])
        self._tensors = safetensors.numpy.load(files["model.safetensors"])
        self.unread = set(self._tensors)
        self._pre_norm = self.config["architectures"] == ["PegasusForConditionalGeneration"]
        assert self._pre_norm or self.config["architectures"] == ["MarianMTModel"]

    def log_probs(self, source_S, inputs_T):
        """Of what follows each of the inputs, [T, V]."""
        encoded = self._side("encoder", source_S, None)
        states = self._side("decoder", inputs_T, encoded)
        output = self._table("lm_head.weight")
        logits = states @ output.T + self._read("final_logits_bias", (1, len(output)))
        logits = logits.astype(np.float64)
        return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))

    def _side(self, side, tokens, encoded):
        name, size, steps = f"model.{side}", self.config["d_model"], len(tokens)
        rows = self.config["max_position_embeddings"]
        position = self._read(f"{name}.embed_positions.weight", (rows, size))[:steps]
        x = self._table(f"{name}.embed_tokens.weight")[tokens] * np.sqrt(size) + position
        seen = np.tril(np.ones((steps, steps))) if encoded is not None else np.ones((steps, steps))
        for index in range(self.config[f"{side}_layers"]):
            layer = f"{name}.layers.{index}"
            x = self._residual(
                x, f"{layer}.self_attn_layer_norm", f"{layer}.self_attn", self._attend, None, seen
            )
            if encoded is not None:
                everything = np.ones((steps, len(encoded)))
                norm, attention = f"{layer}.encoder_attn_layer_norm", f"{layer}.encoder_attn"
                x = self._residual(x, norm, attention, self._attend, encoded, everything)
            hidden = self.config[f"{side}_ffn_dim"]
            x = self._residual(x, f"{layer}.final_layer_norm", layer, self._feedforward, hidden)
        return self._norm(x, f"{name}.layer_norm") if self._pre_norm else x

    def _residual(self, x, norm, name, sublayer, *arguments):
        if self._pre_norm:
            return x + sublayer(self._norm(x, norm), name, *arguments)
        return self._norm(x + sublayer(x, name, *arguments), norm)

    def _attend(self, x_TD, name, read_SD, seen_TS):
        read_SD = x_TD if read_SD is None else read_SD
        size = self.config["d_model"]
        q, k, v = (
            self._heads(self._dense(states, f"{name}.{part}_proj", size))
            for part, states in (("q", x_TD), ("k", read_SD), ("v", read_SD))
        )
        logits_HTS = np.einsum("hte,hse->hts", q, k) / np.sqrt(q.shape[-1])
        weights_HTS = np.where(seen_TS > 0, np.exp(logits_HTS), 0)
        weights_HTS /= weights_HTS.sum(axis=-1, keepdims=True)
        read = np.einsum("hts,hse->the", weights_HTS, v).reshape(len(x_TD), size)
        return self._dense(read, f"{name}.out_proj", size)

    def _heads(self, x_TD):
        heads = self.config["encoder_attention_heads"]
        return x_TD.reshape(len(x_TD), heads, -1).swapaxes(0, 1)

    def _feedforward(self, x, name, hidden):
        x_TF = np.maximum(self._dense(x, f"{name}.fc1", hidden), 0)
        return self._dense(x_TF, f"{name}.fc2", self.config["d_model"])

    def _dense(self, x, name, size):
        weight = self._read(f"{name}.weight", (size, x.shape[-1]))
        return x @ weight.T + self._read(f"{name}.bias", (size,))

    def _norm(self, x, name):
        centred = x - x.mean(axis=-1, keepdims=True)
        normal = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + EPSILON)
        shape = (x.shape[-1],)
        return normal * self._read(f"{name}.weight", shape) + self._read(f"{name}.bias", shape)

    def _table(self, name):
        """Whose table it is follows from the config; PEGASUS has one size for all."""
        config, pegasus = self.config, self._pre_norm
        if config["tie_word_embeddings"]:
            if pegasus or config["share_encoder_decoder_embeddings"]:
                name = "model.shared.weight"
            elif name == "lm_head.weight":
                name = "model.decoder.embed_tokens.weight"
        decodes = "encoder" not in name and not pegasus
        rows = config["decoder_vocab_size" if decodes else "vocab_size"]
        return self._read(name, (rows, config["d_model"]))

    def _read(self, name, shape):
        self.unread.discard(name)
        assert self._tensors[name].shape == shape
        assert self._tensors[name].dtype == np.float32
        return self._tensors[name].astype(np.float64)
