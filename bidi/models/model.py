"""What training, search and evaluation ask of a model, whatever its encoder and decoder are.

One decoder serves training (whole streams, P = 1), rescoring (whole streams, P candidates) and
search (one step with a cache).

Letters: B batch, P pairs, W ways, S source steps, T target steps, E examples of a row, D model,
V vocabulary.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from bidi.models.axes import constrain
from bidi.models.config import ModelConfig
from bidi.models.dense import DECODING, transposed_kernels, typed_kernels
from bidi.models.output import CopyPrior, Output, project, tokens_of
from bidi.models.prices import Prices
from bidi.models.slots import Place, Room

Batch = dict[str, jax.Array]
Cache = dict[str, Any]


@flax.struct.dataclass
class Source:
    """A batch of sources, read.

    Attributes:
        encoded: what the model's decoder reads of them; first axis B.
        occurs_BEV: see `output.tokens_of`; None for a model without `CopyPrior`.
    """

    encoded: Any
    occurs_BEV: jax.Array | None

    def rows(self, index_B: jax.Array) -> "Source":
        """Of these rows, int32 [B']."""
        source: Source = jax.tree.map(lambda leaf: jnp.asarray(leaf)[index_B], self)
        return source


def decoding_variables(model: "Model", params: Any, platform: str) -> dict[str, Any]:
    """What a search applies the model with: what all its steps need is made here, once.

    Parameters with their dense layers' kernels in the dtype of activations, and in the collection
    `decoding` the output's kernel: on a CPU, to turn that takes a quarter as long as the search of
    a sentence. On a CPU large kernels are kept a second time, transposed: `is_faster_transposed`.

    Args:
        model: that is searched with.
        params: its parameters.
        platform: of the devices that search, as `jax.Device.platform`.
    """
    kernel_DV = model.apply({"params": params}, method="output_kernel")
    typed = typed_kernels(params, model.config.activation_dtype)
    transposed = transposed_kernels(typed) if platform == "cpu" else {}
    return {"params": typed, DECODING: {"output_kernel": kernel_DV, **transposed}}


def most_examples(batch: Batch) -> int:
    """No row holds more: an example takes a step of the source and of the target at least."""
    return min(batch["source"].shape[-1], batch["inputs"].shape[-1])


class Embed(nn.Embed):
    """`nn.Embed`, whose table is made whole along D first where a mesh divides it and the rows."""

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """[...] -> [..., D]."""
        table_VD = constrain(self.embedding, "vocabulary")
        return constrain(jnp.take(table_VD, tokens, axis=0), "rows")


class Model(nn.Module):
    """Writes pairs of streams that may read each other.

    Attributes:
        config: the shape of the model.
        ways: W, directions that the decoder writes.
        target_vocabulary: V.
        source_vocabulary: size of the source's own vocabulary; None where the vocabulary is joint.
    """

    config: ModelConfig
    ways: int
    target_vocabulary: int
    source_vocabulary: int | None = None

    def setup(self):
        if self.config.copy_prior:
            self.prior = CopyPrior(self.target_vocabulary)

    def embedding(self, size: int) -> nn.Embed:
        """Of a vocabulary of this size, as wide as the model."""
        init = nn.initializers.normal(self.config.model_size**-0.5)
        return Embed(size, self.config.model_size, embedding_init=init)

    def __call__(self, batch: Batch, train: bool = False) -> jax.Array:
        """Logits of the labels.

        Args:
            batch: of `bidi.data.pipeline`: `source`, `source_segments`, `source_positions`
                [B, S], `inputs`, `segments`, `positions` [B, W, T], all int32.
            train: whether dropout is on; then needs the rng `dropout`.

        Returns:
            float32 [B, W, T, V].
        """
        return project(*self.unprojected(batch, train))

    def unprojected(self, batch: Batch, train: bool = False) -> tuple[jax.Array, Output]:
        """`__call__` short of the last product, for a loss that never holds all logits.

        Returns:
            States [B, W, T, D] in the activations' dtype, and what makes logits of them, see
            `output.project`.
        """
        source = self.start(batch, train, most_examples(batch))
        return self.unprojected_of(source, batch, train)

    def unprojected_of(
        self, source: Source, batch: Batch, train: bool = False, interact: bool = True
    ) -> tuple[jax.Array, Output]:
        """`unprojected`, of sources that are read already.

        `interact` = False lets the streams of an interacting model run alone.
        """
        inputs_B1WT, segments_B1WT, positions_B1WT = (
            batch[key][:, None] for key in ("inputs", "segments", "positions")
        )
        states_B1WTD = self.states(
            source.encoded, inputs_B1WT, segments_B1WT, positions_B1WT, train, interact
        )
        return self._prepared(source, states_B1WTD[:, 0], batch["segments"])

    def unprojected_beside(
        self,
        source: Source,
        batch: Batch,
        partner_inputs_BWT: jax.Array,
        train: bool = False,
    ) -> tuple[jax.Array, Output]:
        """`unprojected_of`, where each stream reads another version of the other stream.

        Two pairs of streams run: the first direction's own stream beside the second's partner, and
        the reverse. The states given back are those of the own streams, which see nothing of each
        other. As in search, a partner reads the stream that it is a partner of.

        Args:
            source: see `start`.
            batch: the batch dict, of two directions that interact.
            partner_inputs_BWT: int32, what way w reads where it is the other's partner; of the same
                segments and positions as `inputs`.
            train: as for `__call__`.
        """
        is_own_1PW1 = jnp.eye(2, dtype=bool)[None, :, :, None]
        inputs_BPWT = jnp.where(is_own_1PW1, batch["inputs"][:, None], partner_inputs_BWT[:, None])
        segments_BPWT, positions_BPWT = (
            jnp.repeat(batch[key][:, None], 2, axis=1) for key in ("segments", "positions")
        )
        states_B1WTD = self.states(
            source.encoded,
            inputs_BPWT,
            segments_BPWT,
            positions_BPWT,
            train,
            interact=True,
            own_only=True,
        )
        return self._prepared(source, states_B1WTD[:, 0], batch["segments"])

    def start(self, batch: Batch, train: bool = False, examples: int | None = None) -> Source:
        """Reads a batch dict's sources, once for all that is written of them.

        Args:
            batch: its targets are not looked at.
            train: as for `__call__`.
            examples: static, the most that a row holds, where that is known to be less than S.
        """
        tokens_BS, segments_BS = batch["source"], batch["source_segments"]
        examples = tokens_BS.shape[1] if examples is None else examples
        encoded = self.encode(tokens_BS, segments_BS, batch["source_positions"], train, examples)
        occurs_BEV = None
        if self.config.copy_prior:
            occurs_BEV = tokens_of(tokens_BS, segments_BS, examples, self.target_vocabulary)
        return Source(encoded, occurs_BEV)

    def decode(
        self,
        source: Source,
        inputs_BPWT: jax.Array,
        segments_BPWT: jax.Array,
        positions_BPWT: jax.Array,
        interact: bool = True,
    ) -> jax.Array:
        """Prices whole streams: float32 logits [B, P, W, T, V]."""
        states_BPWTD = self.states(
            source.encoded, inputs_BPWT, segments_BPWT, positions_BPWT, False, interact
        )
        return project(*self._prepared(source, states_BPWTD, segments_BPWT))

    def decode_step(
        self,
        source: Source,
        cache: Cache,
        tokens_BPW: jax.Array,
        place: Place,
        interact: bool = True,
        combined: int | None = None,
    ) -> tuple[Prices, Cache]:
        """Prices the tokens after `tokens_BPW`, the `place.step_B`-th of their streams.

        Applied with `decoding_variables`.

        Args:
            source: of `place.sentence_B`, one example a row; see `start`.
            cache: what was written at the steps before, see `empty_cache`.
            tokens_BPW: int32, the last tokens of the streams.
            place: where the streams of pairs, and the K streams of each way, write and read.
            interact: as for `unprojected_of`.
            combined: static, K if the pairs are all combinations of K streams of each way, see
                `Pairing`: what does not depend on a stream's partner is computed once a stream.

        Returns:
            The prices of all tokens, and the cache with this step in it.
        """
        states_BPWD, cache = self.step(source.encoded, cache, tokens_BPW, place, interact, combined)
        with jax.named_scope("projection"):
            states_BPWD, output = self._prepared(source, states_BPWD, jnp.ones_like(tokens_BPW))
            kernel_DV = self.variables[DECODING]["output_kernel"]
            output = dataclasses.replace(output, kernel_DV=kernel_DV)
            return Prices.of(project(states_BPWD, output)), cache

    def output_kernel(self) -> jax.Array:
        """`Output.kernel_DV`, in the activations' dtype, which it is multiplied in."""
        return self.output_table().T.astype(self.config.activation_dtype)

    def smallest_batch(self) -> Batch:
        """A batch dict of one empty row: parameters do not depend on its lengths."""
        source_11, target_1W1 = (
            jnp.zeros((1, 1), jnp.int32),
            jnp.zeros((1, self.ways, 1), jnp.int32),
        )
        return {
            **dict.fromkeys(("source", "source_segments", "source_positions"), source_11),
            **dict.fromkeys(("inputs", "segments", "positions"), target_1W1),
        }

    @property
    def interacts(self) -> bool:
        """Whether the streams can read each other."""
        return self.ways == 2 and self.config.interaction != "none"

    def encode(
        self,
        source_BS: jax.Array,
        segments_BS: jax.Array,
        positions_BS: jax.Array,
        train: bool,
        examples: int,
    ) -> Any:
        """What the decoder reads of the sources; a row holds at most so many examples."""
        raise NotImplementedError

    def states(
        self,
        encoded: Any,
        inputs_BPWT: jax.Array,
        segments_BPWT: jax.Array,
        positions_BPWT: jax.Array,
        train: bool,
        interact: bool,
        own_only: bool = False,
    ) -> jax.Array:
        """Whole streams to the states [B, P, W, T, D] from which labels are predicted.

        If `own_only`, of pair w only the stream of way w is wanted: [B, 1, W, T, D].
        """
        raise NotImplementedError

    def step(
        self,
        encoded: Any,
        cache: Cache,
        tokens_BPW: jax.Array,
        place: Place,
        interact: bool,
        combined: int | None,
    ) -> tuple[jax.Array, Cache]:
        """`decode_step` as far as the states, [B, P, W, D]."""
        raise NotImplementedError

    @property
    def keeps_pairs(self) -> bool:
        """Whether the cache keeps steps that depend on both streams of a pair."""
        raise NotImplementedError

    def empty_cache(self, batch: int, pairs: int, room: Room, combined: int | None = None) -> Cache:
        """A cache for `decode_step` of so many pairs a row; `combined` as there."""
        raise NotImplementedError

    def output_table(self) -> jax.Array:
        """float32 [V, D]: logits are its product with the states."""
        raise NotImplementedError

    def _prepared(
        self, source: Source, states: jax.Array, segments: jax.Array
    ) -> tuple[jax.Array, Output]:
        """States [B, ..., D] of these segments [B, ...] and what makes logits of them."""
        if source.occurs_BEV is None:
            return states, Output(self.output_table())
        rows, examples, _ = source.occurs_BEV.shape
        rows_B = jnp.arange(rows).reshape(-1, *(1,) * (segments.ndim - 1))
        # Where nothing is read, whatever is predicted does not count.
        example = rows_B * examples + jnp.clip(segments - 1, 0, examples - 1)
        states, prior = self.prior(states, source.occurs_BEV, example)
        return states, Output(self.output_table(), prior)
