"""From pairs to batches of fixed shape: shuffle, repeat, pack, batch, prefetch.

Letters: B rows, S source steps, T target steps, W ways (directions).

A batch is a flat dict of numpy arrays, the only thing that model and loss know of the data:

    source            int32   [B, S]     token ids, then EOS; PAD elsewhere
    source_segments   int32   [B, S]     1, 2, ... for the examples of a row; 0: nothing is there
    source_positions  int32   [B, S]     position within the example
    inputs, labels    int32   [B, W, T]  what each stream reads and must predict
    segments          int32   [B, W, T]  like source_segments; 0 where the stream reads nothing
    positions         int32   [B, W, T]  position within the example
    weights           float32 [B, W, T]  0 where there is no loss

Segment n of the source and segment n of the target of a row are the same example. An example is a
pair, or with pseudo partners half of one: gold L2R beside pseudo R2L, or the other way round.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import gin
import grain
import numpy as np

from bidi.data.packing import PackedDataset, Rows
from bidi.data.partner import GOLD, Partner
from bidi.data.prepared import PairSource
from bidi.data.sources import DataError
from bidi.data.streams import Direction, Streams
from bidi.data.vocabulary import EOS, PAD

Batch = dict[str, np.ndarray]

# Pairs read from disk at once: single random reads are far slower (see Pairs).
_CHUNK = 256
# Chunks and batches made ahead. Python's lock allows no more than one busy thread for either.
_CHUNKS_AHEAD = 4
_BATCHES_AHEAD = 4


@gin.configurable("Batches")
@dataclasses.dataclass(frozen=True)
class BatchConfig:
    """The shape of batches.

    Attributes:
      rows: Rows of a batch over all devices, processes and accumulation steps.
      source_length: Length of a source row in tokens, EOS included.
      target_length: Length of a target row in tokens, the marker included.
      packing_bins: Rows that are filled side by side; more waste less and mix further.
      pack: Several examples a row; False: one.
    """

    rows: int = 32
    source_length: int = 128
    target_length: int = 128
    packing_bins: int = 64
    pack: bool = True


def training_batches(
    pairs: PairSource,
    streams: Streams,
    config: BatchConfig,
    partner: Partner = GOLD,
    *,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator[Batch]:
    """Endless training batches, in an order that depends on the arguments alone.

    Every epoch shows each pair once, over all processes together, in an order of its own. A row may
    hold examples of two epochs.

    Args:
      pairs: The training pairs, see `bidi.data.pseudo.pairs_beside`.
      streams: Makes the streams of a target.
      config: The shape of the global batch.
      partner: What the other stream reads.
      seed: Of the shuffling.
      process_index: This process, from 0.
      process_count: All processes; each gets rows / process_count rows of every batch.

    Returns:
      A Grain iterator over batches. `get_state` and `set_state` (or Orbax by `grain.checkpoint`)
      save and restore its place exactly, with the same arguments only.

    Raises:
      DataError: Rows shorter than the longest pair, or not divisible among the processes.
    """
    _check_lengths(pairs, streams, config)
    share = _share(config, process_count)
    shuffled = grain.MapDataset.range(len(pairs)).seed(seed).shuffle().repeat()
    mine = shuffled[process_index::process_count]
    batches = (
        _rows(mine, pairs, streams, config, partner, seed=seed)
        .batch(share, drop_remainder=True)
        .map(_batch)
    )
    return iter(
        grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=_BATCHES_AHEAD)
    )


def validation_batches(
    pairs: PairSource,
    streams: Streams,
    config: BatchConfig,
    partner: Partner = GOLD,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Batches with every pair once, in order; the last one is filled up with empty rows.

    Every process makes all of them and takes its rows: they are few, and the same for any number.

    Args:
      pairs: The pairs to validate on.
      streams: Makes the streams of a target.
      config: The shape of the global batch.
      partner: What the other stream reads.
      process_index: This process, from 0.
      process_count: All processes; each gets rows / process_count rows of every batch.

    Raises:
      DataError: Rows shorter than the longest pair, or not divisible among the processes.
    """
    _check_lengths(pairs, streams, config)
    share = _share(config, process_count)
    rows = _rows(grain.MapDataset.range(len(pairs)), pairs, streams, config, partner, seed=None)
    for batch in rows.batch(config.rows, drop_remainder=False).map(_batch):
        missing = config.rows - len(batch["source"])
        # PAD, segment 0 and weight 0 are all zero.
        yield {
            key: np.pad(value, [(0, missing)] + [(0, 0)] * (value.ndim - 1))[
                process_index * share : (process_index + 1) * share
            ]
            for key, value in batch.items()
        }


def _share(config: BatchConfig, process_count: int) -> int:
    """Rows of a batch that each process gets."""
    if config.rows % process_count:
        raise DataError(
            f"Batches.rows = {config.rows} is not divisible by the {process_count} processes"
        )
    return config.rows // process_count


def _check_lengths(pairs: PairSource, streams: Streams, config: BatchConfig) -> None:
    longest = pairs.longest
    for side, length, needed in (
        ("source", config.source_length, longest["source"] + 1),
        ("target", config.target_length, streams.length(longest["target"])),
    ):
        if length < needed:
            raise DataError(
                f"Batches.{side}_length = {length}, but the longest {side} of {longest[side]} "
                f"tokens needs {needed}, markers included: raise it, or prepare the data with a "
                f"smaller Data.max_{side}_length"
            )


def _rows(
    indices: grain.MapDataset[int],
    pairs: PairSource,
    streams: Streams,
    config: BatchConfig,
    partner: Partner,
    *,
    seed: int | None,
) -> grain.IterDataset:
    """Rows of the pairs at `indices`, in order if not packed; a seed shuffles packed rows."""

    def read(chunk: Sequence[int]) -> list[Batch]:
        return [
            example
            for pair in pairs.__getitems__(chunk)
            for example in _examples(pair, streams, config, partner)
        ]

    chunks = (
        indices.batch(_CHUNK, batch_fn=list)
        .map(read)
        .to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=_CHUNKS_AHEAD))
    )
    rows = Rows(
        config.source_length,
        config.target_length,
        config.packing_bins,
        most=None if config.pack else 1,
        # First fit leaves the emptiest rows last: without shuffling, batches would differ in kind.
        seed=seed if config.pack else None,
    )
    return PackedDataset(chunks, rows)


def _examples(
    pair: Mapping[str, np.ndarray], streams: Streams, config: BatchConfig, partner: Partner
) -> list[Batch]:
    """A pair before packing: [S] and [T, W], since rows are packed along the first axis."""
    if partner.kind == "pseudo":
        streams_of = [
            _gold_beside_pseudo(pair, gold, streams, config, partner) for gold in streams.directions
        ]
    else:
        streams_of = [streams.tokens(pair["target"])]
    source = np.append(pair["source"], np.int32(EOS))
    return [{"source": source, **tokens} for tokens in streams_of]


def _gold_beside_pseudo(
    pair: Mapping[str, np.ndarray],
    gold: Direction,
    streams: Streams,
    config: BatchConfig,
    partner: Partner,
) -> Batch:
    """The gold stream of one direction beside what a model wrote in the other."""
    tokens = streams.tokens_beside(
        {way: pair["target" if way == gold else way] for way in streams.directions}
    )
    # Nothing sees what the partner writes after the gold stream's end, unless it is to be learnt:
    # then it is cut where the row ends, with its end marker, and what is left of it is as good.
    steps = config.target_length
    if not partner.loss_on_pseudo:
        steps = len(pair["target"]) + 1
        tokens["weights"][:, [way != gold for way in streams.directions]] = 0
    return {key: value_TW[:steps] for key, value_TW in tokens.items()}


def _batch(packed: Mapping[str, np.ndarray]) -> Batch:
    """Names and axes as the module's head says, from those of packed rows."""
    inputs_BWT, labels_BWT, weights_BWT = (
        np.ascontiguousarray(packed[key].swapaxes(1, 2)) for key in ("inputs", "labels", "weights")
    )
    segments_B1T = packed["inputs_segment_ids"][:, None, :]
    positions_B1T = packed["inputs_positions"][:, None, :]
    return {
        "source": packed["source"],
        "source_segments": packed["source_segment_ids"],
        "source_positions": packed["source_positions"],
        "inputs": inputs_BWT,
        "labels": labels_BWT,
        # A stream may be over before its example's other stream is.
        "segments": np.where(inputs_BWT == PAD, 0, segments_B1T),
        "positions": np.repeat(positions_B1T, inputs_BWT.shape[1], axis=1),
        "weights": weights_BWT,
    }
