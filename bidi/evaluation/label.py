"""Writes pseudo outputs: what trained models write for each pair, shard by shard.

The files are described in `bidi.data.pseudo`. A shard is written whole or not at
all: what a stopped run leaves is complete shards, and the next run writes the others.
"""

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgpack
import numpy as np
from etils import epath

from bidi import distributed
from bidi.data import pseudo
from bidi.data.folds import fold_of
from bidi.data.prepared import Pairs, Prepared, read_range
from bidi.data.records import Records, record_writer
from bidi.data.streams import Direction
from bidi.errors import DataError, UserError
from bidi.evaluation import restore
from bidi.evaluation.found import Tally
from bidi.evaluation.generate import Generator
from bidi.experiment import data_identity, load_run
from bidi.files import write_whole, writing_whole
from bidi.progress import progress_bar
from bidi.provenance import provenance
from bidi.search.config import SearchConfig

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Labeller:
    """A model that writes pseudo outputs.

    Attributes:
        workdir: where it comes from.
        generator: the model.
        search: how its outputs are searched.
        directions: which of them are taken.
        identity: what the outputs depend on: directions, step, search, and `Generator.identity`.
    """

    workdir: str
    generator: Generator
    search: SearchConfig
    directions: tuple[Direction, ...]
    identity: dict[str, Any]

    def write(self, sources: Sequence[np.ndarray], tally: Tally) -> list[dict[str, bytes]]:
        """Its directions of each source's record; sources int32 [s] without marker."""
        return [
            {
                direction: np.array(found.n_best[direction][0].tokens, "<i4").tobytes()
                for direction in self.directions
            }
            for found in self.generator.search_tokens(sources, self.search, tally)
        ]


# The models that write both directions of a record between them: one, or one for each.
Labellers = tuple[Labeller, ...]


def load_labellers(
    workdirs: Mapping[Direction, epath.Path],
    checkpoint: str,
    prepared: Prepared,
    bindings: Sequence[str] = (),
) -> Labellers:
    """Restores the models that write both directions.

    Args:
        workdirs: direction -> the workdir of a model that writes it.
        checkpoint: `best`, `latest`, or a step.
        prepared: the data to be labelled.
        bindings: changes of the workdirs' configs, like another search.

    Raises:
        FileNotFoundError: there is no such workdir or checkpoint.
        UserError: a model writes another direction, or other vocabularies.
    """
    labellers = []
    for workdir in dict.fromkeys(workdirs.values()):
        experiment = load_run(str(workdir), bindings)
        if data_identity(workdir)["vocabularies"] != prepared.manifest["vocabularies"]:
            raise UserError(
                f"{workdir} has other vocabularies than the data in {prepared.directory}: label "
                "with models that were trained on these data"
            )
        directions = tuple(way for way, where in workdirs.items() if where == workdir)
        if missing := [way for way in directions if way not in experiment.streams.writers]:
            raise UserError(f"{workdir} does not write {missing[0]}")
        generator, step = restore.restore_generator(str(workdir), experiment, checkpoint)
        identity = {
            "directions": directions,
            "step": step,
            **generator.identity,
            "search": dataclasses.asdict(experiment.search),
        }
        labellers.append(Labeller(str(workdir), generator, experiment.search, directions, identity))
    return tuple(labellers)


@dataclasses.dataclass(frozen=True)
class _Shard:
    path: epath.Path
    split: str
    start: int
    pairs: int


def _is_whole(shard: _Shard) -> bool:
    """Whether it is there, all of it; one that was cut off is written again."""
    if not shard.path.exists():
        return False
    try:
        return len(Records([shard.path], "it is written again")) == shard.pairs
    except DataError as error:
        log.warning("%s", error)
        return False


def label(
    directory: epath.Path,
    prepared: Prepared,
    labellers: Sequence[Labellers],
    stop: Callable[[], bool],
    process_index: int = 0,
    process_count: int = 1,
) -> bool:
    """Writes the pseudo outputs of all pairs, or what is missing of them.

    Args:
        directory: of the outputs.
        prepared: the data.
        labellers: of each fold, those that write its outputs; without folds those that write all.
        stop: asked before every shard, whether to stop there.
        process_index: of the processes that divide the shards, on one file system.
        process_count: all of them; the first waits for the others and completes the manifest.

    Returns:
        Whether all is there; if not, it was asked to stop.

    Raises:
        DataError: the directory holds other outputs.
        ConfigError: processes have other data or labellers.
    """
    prepared.check_alike()
    job = _job(prepared, labellers)
    # Beside a labeller that is still trained, one may find a newer checkpoint than another.
    distributed.check_alike({"labellers": distributed.short(job)})
    names = [[labeller.workdir for labeller in fold] for fold in labellers]
    about = {"workdirs": names, "provenance": provenance()}
    # In one process: another would find the manifest that the first has just written.
    finished = distributed.from_first(lambda: _begin(directory, job, about))
    pairs = {split: prepared.pairs(split) for split in pseudo.SPLITS}
    mine = _shards(directory, pairs)[process_index::process_count]
    missing = [shard for shard in mine if not _is_whole(shard)]
    started = time.perf_counter()
    # In turns of all processes, so that none waits for one that was stopped.
    turns = max(distributed.allgather(len(missing)))
    if finished and not turns:
        log.info("%s is labelled already", directory)
        return True
    most = max((shard.pairs for shard in mine), default=0)
    log.info("Labelling in shards of up to %d pairs; a signal stops it behind one", most)
    tally, stopped = Tally(), False
    with progress_bar() as progress:
        for turn in progress.track(range(turns), turns, description="labelling"):
            if stopped := any(distributed.allgather(stop())):
                break
            if turn >= len(missing):
                continue
            shard = missing[turn]
            batch = read_range(pairs[shard.split], shard.start, shard.start + shard.pairs)
            _write_shard(shard.path, _records([pair["source"] for pair in batch], labellers, tally))
            log.info("Labelled %s, %.1f s so far", shard.path.name, time.perf_counter() - started)
    # Once all are here, all shards are there.
    if truncated := sum(distributed.allgather(tally.truncated)):
        log.warning("%d sources were longer than their labeller reads, and cut", truncated)
    if stopped:
        return False
    if process_index == 0:
        _finish(directory, prepared)
    distributed.allgather("the manifest is")
    return True


def _job(prepared: Prepared, labellers: Sequence[Labellers]) -> dict[str, Any]:
    """All that the outputs depend on, as JSON gives it back."""
    job = {
        "format": pseudo.FORMAT,
        "fingerprint": prepared.manifest["fingerprint"],
        "pairs_per_shard": pseudo.pairs_per_shard(len(prepared.pairs("train"))),
        "labellers_of_folds": [[labeller.identity for labeller in fold] for fold in labellers],
    }
    return json.loads(json.dumps(job))


def _begin(directory: epath.Path, job: dict[str, Any], about: dict[str, Any]) -> bool:
    """Lays down what will be written here, or compares it; says whether all is there."""
    path = directory / pseudo.MANIFEST
    if not path.is_file():
        for split in pseudo.SPLITS:
            if shards := pseudo.shards_there(directory, split):
                raise DataError(
                    f"{directory} holds {shards[0].name} and no {pseudo.MANIFEST} that says what "
                    "it is: delete such files, or choose another directory"
                )
        directory.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(job | about, indent=2) + "\n")
        return False
    manifest = json.loads(path.read_text())
    if different := [key for key in job if manifest.get(key) != job[key]]:
        raise DataError(
            f"{directory} holds pseudo outputs that were made otherwise: {path} differs in "
            f"{', '.join(different)}. Choose another directory, or {pseudo.AWAY}"
        )
    return "splits" in manifest


def _shards(directory: epath.Path, pairs: Mapping[str, Pairs]) -> list[_Shard]:
    shards = []
    for split, its in pairs.items():
        size = pseudo.pairs_per_shard(len(its))
        for number, path in enumerate(pseudo.shard_paths(directory, split, len(its))):
            start = number * size
            shards.append(_Shard(path, split, start, min(size, len(its) - start)))
    return shards


def _records(
    sources: Sequence[np.ndarray], labellers: Sequence[Labellers], tally: Tally
) -> list[dict[str, bytes]]:
    """The record of each source, by the labellers of its fold; counts the sources that are cut."""
    records: list[dict[str, bytes]] = [{} for _ in sources]
    folds = [fold_of(source, len(labellers)) for source in sources]
    for fold, its in enumerate(labellers):
        members = [index for index, of_source in enumerate(folds) if of_source == fold]
        tallies = [Tally() for _ in its]
        for labeller, own in zip(its, tallies, strict=True):
            written = labeller.write([sources[index] for index in members], own)
            for index, directions in zip(members, written, strict=True):
                records[index] |= directions
        # Not their sum: one for each direction reads the same sources.
        tally.truncated += max(own.truncated for own in tallies)
    return records


def _write_shard(path: epath.Path, records: Sequence[dict[str, bytes]]) -> None:
    with writing_whole(path) as file:
        writer = record_writer(file)
        for record in records:
            writer.write(msgpack.packb(record))
        writer.close()


def _finish(directory: epath.Path, prepared: Prepared) -> None:
    path = directory / pseudo.MANIFEST
    splits = {split: pseudo.summary(directory, prepared, split) for split in pseudo.SPLITS}
    manifest = json.loads(path.read_text()) | {"splits": splits}
    write_whole(path, json.dumps(manifest, indent=2) + "\n")
    for split, entry in splits.items():
        equal = {way: f"{100 * entry[way]['equal_to_gold']:.1f} %" for way in ("l2r", "r2l")}
        log.info("%s: %d pairs, equal to gold: %s", split, entry["pairs"], equal)
