"""Writes outputs for texts: python -m bidi.translate --workdir=... <sources >outputs.

One source a line, one output a line, in the same order; an empty line stays empty. `--n_best`
gives so many lines a source, `--scores` and `--json` say more. Text is UTF-8.
"""

import dataclasses
import io
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from absl import flags

from bidi import distributed, trained, verb
from bidi.data.text import decode_lines, read_lines
from bidi.errors import DataError, UserError
from bidi.evaluation.choose import System
from bidi.evaluation.found import Found, Hypothesis, Tally
from bidi.files import is_plain_file, on_disk, path_of, writing_whole

log = logging.getLogger(__name__)

# Sources read at once: enough for batches of like lengths, not all of a great file.
_CHUNK = 4096

flags.adopt_module_key_flags(trained)  # so that --help shows them
_INPUT = flags.DEFINE_string("input", None, "A file of sources, plain or .gz; stdin by default.")
_OUTPUT = flags.DEFINE_string("output", None, "A file for outputs; stdout by default.")
_N_BEST = flags.DEFINE_integer(
    "n_best", 1, "Lines a source, best output first; empty where there are fewer.", lower_bound=1
)
_SCORES = flags.DEFINE_bool(
    "scores", False, "Puts what outputs are ranked by and a tab before each."
)
_JSON = flags.DEFINE_bool(
    "json", False, "One JSON object a source: outputs of each direction, and which way won."
)


def main(bindings: list[str]) -> None:
    """Reads, searches and writes, a chunk at a time."""
    models = trained.load(bindings)
    system = models.system
    output = None if _OUTPUT.value is None else path_of(_OUTPUT.value)
    if output is not None and output.exists() and not is_plain_file(output):
        raise UserError(f"--output={output} is no file; without it, outputs go to stdout")
    if output is not None and output.suffix == ".gz":
        raise UserError(f"--output={output}: outputs are written as they are: leave out .gz")
    verb.check_output(_OUTPUT.value)
    if system.rescores:
        choice = system.saved_choice(models.agreement_file)
        if choice is None:
            alone = "--gin.Agreement.rescore=False" if len(system.generators) == 1 else "one model"
            raise UserError(
                "agreement has not been tuned for this search and checkpoint: run bidi.evaluate "
                f"with the same flags first, or pass {alone}"
            )
        system = dataclasses.replace(system, choice=choice)
    system = _with_n_best(system, _N_BEST.value)
    if not distributed.is_first():
        with on_disk(os.devnull).open("w") as nowhere:
            _translate(system, nowhere)
        return
    if output is None:
        if sys.stdout is None:
            raise UserError("stdout is closed: name a file by --output")
        if isinstance(sys.stdout, io.TextIOWrapper):  # whatever the locale
            sys.stdout.reconfigure(encoding="utf-8")
        try:
            _translate(system, sys.stdout)
        except BrokenPipeError:  # who reads has enough; nor is Python to say so at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        return
    with writing_whole(output) as temporary, temporary.open("w", encoding="utf-8") as file:
        _translate(system, file)


def _translate(system: System, output: TextIO) -> None:
    tally = Tally()
    winner_only = not (system.rescores or _JSON.value or _N_BEST.value > 1)
    chunks = _chunks(_read_lines())
    while sources := distributed.from_first(lambda: next(chunks, [])):
        found = system.find(sources, tally, winner_only)
        ranked = system.rank(sources, found)
        for of_source in zip(sources, found, ranked, strict=True):
            output.writelines(_lines(system, *of_source))
        output.flush()
    if tally.truncated:
        log.warning("%d sources were longer than the model reads, and cut", tally.truncated)


def _lines(
    system: System, source: str, found: Found, ranked: tuple[Hypothesis, ...]
) -> Iterator[str]:
    """What is written for one source."""
    generator = system.generators[0]
    if _JSON.value:
        yield json.dumps(_record(system, source, found, ranked), ensure_ascii=False) + "\n"
        return
    for hypothesis in ranked[: _N_BEST.value]:
        score = f"{hypothesis.score:.4f}\t" if _SCORES.value else ""
        yield f"{score}{generator.text(hypothesis)}\n"
    # So that the n-th source's lines are always the n-th lot.
    yield "\n" * (_N_BEST.value - len(ranked))


def _record(
    system: System, source: str, found: Found, ranked: tuple[Hypothesis, ...]
) -> dict[str, Any]:
    generator = system.generators[0]

    def describe(hypothesis: Hypothesis) -> dict[str, Any]:
        return {
            "text": generator.text(hypothesis),
            "tokens": generator.target_vocabulary.pieces(hypothesis.tokens),
            "score": hypothesis.score,
            "log_prob": hypothesis.log_prob,
            "finished": hypothesis.finished,
        }

    chosen = ranked[0] if ranked else None
    record: dict[str, Any] = {
        "source": source,
        "output": generator.text(chosen),
        "won": chosen.direction if chosen else None,
        "directions": {
            direction: [describe(hypothesis) for hypothesis in listed]
            for direction, listed in found.n_best.items()
        },
    }
    if system.rescores:  # by other scores than the search's
        record["ranked"] = [
            {"text": generator.text(hypothesis), "score": hypothesis.score} for hypothesis in ranked
        ]
    return record


def _with_n_best(system: System, n_best: int) -> System:
    """A search that gives so many outputs a source, if both directions give their best."""
    if n_best == 1:
        return system
    if system.rescores:
        if n_best > system.candidate_count:
            raise UserError(
                f"--n_best={n_best}, but agreement chooses among {system.candidate_count} outputs: "
                "raise --gin.Agreement.n_best, and run bidi.evaluate with it"
            )
        return system
    streams = system.generators[0].streams
    hypotheses = system.search.make_coupling(len(streams.directions)).hypotheses
    if n_best > len(streams.writers) * hypotheses:
        raise UserError(
            f"--n_best={n_best}, but the search keeps {hypotheses} hypotheses of each of "
            f"{len(streams.writers)}: raise --gin.Search.beam_size"
        )
    search = dataclasses.replace(system.search, n_best=min(n_best, hypotheses))
    return dataclasses.replace(system, searches=(search,))


def _read_lines() -> Iterator[str]:
    if _INPUT.value is None and sys.stdin is None:
        raise UserError("stdin is closed: name a file by --input")
    if _INPUT.value is None:
        return decode_lines(sys.stdin.buffer, "stdin")
    return read_lines(path_of(_INPUT.value))


def _chunks(lines: Iterable[str]) -> Iterator[list[str]]:
    """Lists of lines; those before one that cannot be read come first."""
    chunk: list[str] = []
    try:
        for line in lines:
            chunk.append(line)
            if len(chunk) == _CHUNK:
                yield chunk
                chunk = []
    except DataError:
        if chunk:
            yield chunk
        raise
    if chunk:
        yield chunk


if __name__ == "__main__":
    verb.run("bidi.translate", main, processes=True)
