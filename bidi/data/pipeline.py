"""From pairs to batches of fixed shape: shuffle, repeat, pack, batch, prefetch.

Letters: B rows, S source steps, T target steps, W ways (directions), E examples, N target steps of
all of them.

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
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

import gin
import grain
import numpy as np

from bidi import ranges
from bidi.data.packing import Examples, PackedDataset, Rows
from bidi.data.partner import GOLD, Partner
from bidi.data.prepared import PairSource
from bidi.data.ragged import Ragged
from bidi.data.streams import Direction, Streams
from bidi.errors import DataError
from bidi.tokens import EOS, PAD

Batch = dict[str, np.ndarray]

# Pairs read from disk at once: of 256 a pair takes 12 microseconds, of 1,024 or more 4 to 6, and
# single random reads are far slower (see Pairs).
_CHUNK = 1024
# Chunks and batches made ahead. Python's lock allows no more than one busy thread for either.
_CHUNKS_AHEAD = 4
_BATCHES_AHEAD = 4

_EOS = np.array([EOS], np.int32)


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

    def __post_init__(self):
        sizes = ("rows", "source_length", "target_length", "packing_bins")
        ranges.check(self, "Batches", *sizes, least=1)


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
    check_lengths(pairs, streams, config)
    share = _share(config, process_count)
    epochs = _Epochs(len(pairs), seed)

    def indices(start: int, stop: int) -> np.ndarray:
        return epochs.indices(np.arange(start, stop) * process_count + process_index)

    batches = (
        _rows(indices, sys.maxsize, pairs, streams, config, partner, seed=seed)
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
    check_lengths(pairs, streams, config)
    share = _share(config, process_count)
    rows = _rows(np.arange, len(pairs), pairs, streams, config, partner, seed=None)
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


def check_lengths(pairs: PairSource, streams: Streams, config: BatchConfig) -> None:
    """Looks whether the longest pair fits a row.

    Raises:
        DataError: it does not.
    """
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


class _Epochs:
    """Endless epochs of all pairs, each in an order of its own."""

    def __init__(self, pairs: int, seed: int):
        self._pairs, self._seed = pairs, seed
        # A chunk may end one and begin the next.
        self._order = functools.lru_cache(maxsize=2)(self._shuffled)

    def indices(self, places: np.ndarray) -> np.ndarray:
        """The pairs at these places, ascending int64, of the epochs one after another."""
        epochs, within = np.divmod(places, self._pairs)
        parts = [self._order(epoch)[within[epochs == epoch]] for epoch in np.unique(epochs)]
        return np.concatenate(parts)

    def _shuffled(self, epoch: int) -> np.ndarray:
        order = np.arange(self._pairs, dtype=np.uint32)
        np.random.default_rng((self._seed, epoch)).shuffle(order)
        return order


def _rows(
    indices: Callable[[int, int], np.ndarray],
    count: int,
    pairs: PairSource,
    streams: Streams,
    config: BatchConfig,
    partner: Partner,
    *,
    seed: int | None,
) -> grain.IterDataset:
    """Rows of `count` pairs, in order if not packed; a seed shuffles packed rows.

    `indices` gives those from one place in the order to another.
    """

    def read(chunk: int) -> Examples:
        start = chunk * _CHUNK
        some = indices(start, min(start + _CHUNK, count)).tolist()
        return _examples(pairs.__getitems__(some), streams, config, partner)

    # Not a Grain dataset of indices: its shuffling takes 10 microseconds an index.
    chunks = (
        grain.MapDataset.range(-(-count // _CHUNK))
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
    pairs: Sequence[Mapping[str, np.ndarray]],
    streams: Streams,
    config: BatchConfig,
    partner: Partner,
) -> Examples:
    """Pairs before packing."""

    def of(name: str) -> Ragged:
        return Ragged.of([pair[name] for pair in pairs])

    ids_N = np.concatenate([ids for pair in pairs for ids in (pair["source"], _EOS)])
    source = Ragged({"source": ids_N}, np.array([len(pair["source"]) + 1 for pair in pairs]))
    if partner.kind != "pseudo":
        return Examples(source, streams.of_targets(of("target")))
    twice_E = np.repeat(np.arange(len(pairs)), len(streams.directions))
    beside = _gold_beside_pseudo(
        of("target"), {way: of(way) for way in streams.directions}, streams, config, partner
    )
    return Examples(source.take(twice_E), beside)


def _gold_beside_pseudo(
    gold: Ragged,
    pseudo: Mapping[Direction, Ragged],
    streams: Streams,
    config: BatchConfig,
    partner: Partner,
) -> Ragged:
    """Of each pair the gold stream of one direction beside what a model wrote in the other; twice.

    For each direction in turn, the first pair's examples first.
    """
    pairs, ways = len(gold), len(streams.directions)
    gold_way_E, pair_E = np.tile(np.arange(ways), pairs), np.repeat(np.arange(pairs), ways)
    examples = streams.beside(
        {
            direction: Ragged.concatenate([gold, pseudo[direction]]).take(
                np.where(gold_way_E == way, pair_E, pairs + pair_E)
            )
            for way, direction in enumerate(streams.directions)
        }
    )
    # Nothing sees what the partner writes after the gold stream's end, unless it is to be learnt:
    # then it is cut where the row ends, with its end marker, and what is left of it is as good.
    if partner.loss_on_pseudo:
        return examples.cut(np.full(len(pair_E), config.target_length))
    examples = examples.cut(gold.length_E[pair_E] + 1)
    is_gold_EW = gold_way_E[:, None] == np.arange(ways)
    weights_NW = examples.arrays["weights"] * np.repeat(is_gold_EW, examples.length_E, axis=0)
    return Ragged({**examples.arrays, "weights": weights_NW}, examples.length_E)


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
