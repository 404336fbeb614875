"""The speed of search: a model's couplings and beams beside a model of one direction."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

from bidi.benchmarking import programs
from bidi.benchmarking.devices import peak_memory
from bidi.benchmarking.rounds import Spread, interleaved, ratios, seconds_of
from bidi.errors import UserError
from bidi.evaluation.found import Tally
from bidi.evaluation.generate import Generator
from bidi.experiment import Experiment
from bidi.provenance import CompileMeter
from bidi.search.config import SearchConfig
from bidi.search.coupling import CouplingName

log = logging.getLogger(__name__)

# So many sentences are searched one at a time.
ALONE = 50

# The beams at which `product` and `paired` are compared: of each direction, and of both together.
_PRODUCT_BEAM, _PAIRED_BEAM = 3, 6


@dataclasses.dataclass(frozen=True)
class Row:
    """What is measured: a search by one of the models.

    Attributes:
        model: its name.
        search: coupling and beam.
    """

    model: str
    search: SearchConfig

    @property
    def name(self) -> str:
        """Model, coupling and beam."""
        return f"{self.model}, {self.search.coupling}, beam {self.search.beam_size}"


@dataclasses.dataclass(frozen=True)
class Taken:
    """What was measured of a row at one size of batch.

    Attributes:
        seconds: of each round.
        sentences: searched in a round.
        tokens: of the outputs given out.
        tally: of one round.
        compile_seconds: for all programs that the round needs.
        memory: of the largest of them, see `programs.memory`.
    """

    seconds: list[float]
    sentences: int
    tokens: int
    tally: Tally
    compile_seconds: float
    memory: dict[str, int]

    @property
    def sentences_per_second(self) -> Spread:
        """Over the rounds."""
        return Spread.of(self.sentences / one for one in self.seconds)

    def report(self, base: "Taken | None") -> dict[str, Any]:
        """As rates; `base` is the row of one direction at the same beam, if there is one."""
        return {
            "sentences_per_second": self.sentences_per_second,
            "milliseconds_per_sentence": Spread.of(
                1000 * one / self.sentences for one in self.seconds
            ),
            "tokens_per_second": Spread.of(self.tokens / one for one in self.seconds),
            "ratio_to_l2r": base and ratios(base.seconds, self.seconds),
            "row_steps_run": self.tally.row_steps_run,
            "row_steps_needed": self.tally.row_steps_needed,
            "searched_again": self.tally.searched_again,
            "compile_seconds": self.compile_seconds,
            "program_memory": self.memory,
        }


def rows(model: Experiment, beams: Sequence[int], base: bool) -> list[Row]:
    """What is measured: every coupling that the model allows, at every beam that fits it.

    Args:
        model: the model's experiment.
        beams: as `Search.beam_size`.
        base: whether there is a model of one direction beside it, which then is measured at
            every beam that the model is.
    """
    name: CouplingName = "joint" if model.streams.layout == "halves" else "none"
    searches: list[tuple[CouplingName, int]] = [(name, beam) for beam in beams]
    if name == "none" and model.model.interaction != "none":
        searches += [("paired", beam) for beam in beams if beam % 2 == 0]
        searches += [("product", beam) for beam in beams]
        searches += [("product", _PRODUCT_BEAM), ("paired", _PAIRED_BEAM)]
    configs = [
        dataclasses.replace(model.search, coupling=coupling, beam_size=beam, n_best=1)
        for coupling, beam in dict.fromkeys(searches)
    ]
    of_model = [Row("model", config) for config in configs]
    of_base = [
        Row("L2R", dataclasses.replace(model.search, coupling="none", beam_size=beam, n_best=1))
        for beam in sorted({config.beam_size for config in configs})
    ]
    return of_base + of_model if base else of_model


def measure(
    models: dict[str, Generator],
    listed: Sequence[Row],
    sources: Sequence[str],
    batch_tokens: Sequence[int],
    compiled: CompileMeter,
    *,
    rounds: int,
) -> dict[str, Any]:
    """Measures every row at every size of batch.

    Args:
        models: 'model' and, if there is one, 'L2R', of one direction.
        listed: the rows.
        sources: texts.
        batch_tokens: sizes of batch, in source tokens, beside one sentence at a time.
        compiled: counts since before.
        rounds: in each, all rows are measured once, in turn.

    Returns:
        `rows`: for each its name, `batches` by size ('one' sentence at a time, or source tokens),
        the `best` of the sizes and there the ratio to L2R's own best; `memory`. What was measured
        in every round is a `Spread`.
    """
    taken = {
        size: _at_batch(models, listed, sources, size, compiled, rounds)
        for size in (None, *batch_tokens)
    }
    return {
        "rows": [row_report(row, taken) for row in listed],
        "memory": peak_memory(),
    }


def shares(models: dict[str, Generator], listed: Sequence[Row], sources: Sequence[str]) -> dict:
    """For each row how its time on the devices is shared out, alone and in a batch.

    All sources of the batch are copies of one of middle length, so that one program runs.

    Raises:
        UserError: the backend's profiler names no operations, or the cache had too
            little room for this source, so that two programs ran.
    """
    middle = sorted(sources, key=len)[len(sources) // 2]
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in listed:
        log.info("Tracing: %s", row.name)
        found[row.name] = {}
        for name, texts in (("one", [middle]), ("batch", [middle] * len(sources))):
            # Anew: what was compiled before could not be told apart.
            generator = models[row.model].anew()
            tally = Tally()
            search = functools.partial(_search, generator, row.search, [texts], tally)
            found[row.name][name] = programs.time_shares(search)
            if tally.searched_again:
                raise UserError(
                    f"{row.name}: {middle!r} is searched twice, which cannot be told apart; change "
                    "--sentences, or measure without --profile"
                )
    return found


def _at_batch(
    models: dict[str, Generator],
    listed: Sequence[Row],
    sources: Sequence[str],
    batch_tokens: int | None,
    compiled: CompileMeter,
    rounds: int,
) -> dict[Row, Taken]:
    """All rows at one size of batch."""
    generators = {name: model.anew(batch_tokens=batch_tokens) for name, model in models.items()}
    given = [[source] for source in sources[:ALONE]] if batch_tokens is None else [list(sources)]
    runs: dict[Row, Callable[[], float]] = {}
    firsts: dict[Row, Taken] = {}
    log.info("Compiling %d searches, batches of %s", len(listed), batch_tokens or "one sentence")
    for row in listed:
        search = functools.partial(_search, generators[row.model], row.search, given)
        tally, before = Tally(), compiled.seconds
        with programs.watch() as executables:
            tokens = search(tally)
        firsts[row] = Taken(
            seconds=[],
            sentences=tally.sentences,
            tokens=tokens,
            tally=tally,
            compile_seconds=compiled.seconds - before,
            memory=programs.memory(executables),
        )
        runs[row] = functools.partial(seconds_of, functools.partial(search, Tally()))
    log.info("Measuring them")
    seconds = interleaved(rounds, runs, compiled)
    return {row: dataclasses.replace(firsts[row], seconds=seconds[row]) for row in listed}


def _search(
    generator: Generator, config: SearchConfig, given: list[list[str]], tally: Tally
) -> int:
    """Searches as `bidi.translate` does; the number of tokens given out."""
    winners = [
        one.winner
        for sources in given
        for one in generator.search(sources, config, tally, winner_only=True)
    ]
    return sum(len(winner.tokens) for winner in winners if winner)


def row_report(row: Row, taken: dict[int | None, dict[Row, Taken]]) -> dict[str, Any]:
    """What was measured of a row at every size of batch; `taken` holds all rows."""
    base = Row("L2R", dataclasses.replace(row.search, coupling="none"))
    best = _best(row, taken)
    has_base = base in taken[best]
    return {
        "name": row.name,
        "model": row.model,
        "coupling": row.search.coupling,
        "beam_size": row.search.beam_size,
        "batches": {
            "one" if size is None else str(size): at[row].report(at.get(base))
            for size, at in taken.items()
        },
        "best": str(best),
        "ratio_to_l2r_at_best": (
            taken[best][row].sentences_per_second.median
            / taken[_best(base, taken)][base].sentences_per_second.median
            if has_base
            else None
        ),
    }


def _best(row: Row, taken: dict[int | None, dict[Row, Taken]]) -> int:
    """The size of batch at which a row is fastest."""
    sizes = [size for size in taken if size is not None]
    return max(sizes, key=lambda size: taken[size][row].sentences_per_second.median)
