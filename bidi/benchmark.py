"""Measures speed: python -m bidi.benchmark train|loss|search|article [--flag ...].

train  --gin_file=...  the update of an experiment of two directions, on its prepared data, and of
                       the same experiment with L2R alone: milliseconds, tokens/s, FLOP/s, padding,
                       waiting, memory; their ratio beside the bound that the operations set
loss   --gin_file=...  the loss of an experiment's shapes, in chunks as in training and with
                       whole logits: memory and milliseconds; needs no data
search --workdir=...   a trained model's couplings and beams, one sentence at a time and in
                       batches, beside a trained L2R model (--l2r_workdir)
article --workdir=...  Su 2019's search by a trained recurrent model, as his code runs it, in numpy
                       and one sentence at a time, beside this one, and what this one saves

All is taken in turn, A B C A B C, and shown as median and range of the rounds; compilation is
timed apart. Nothing else should run on the machine.
"""

import dataclasses
import json
import sys
from typing import Any

import jax
from absl import flags

from bidi import trained, verb
from bidi.benchmarking import compiled, losses, product, searches, tables, updates
from bidi.data.prepared import Prepared
from bidi.errors import UserError
from bidi.evaluation import restore
from bidi.evaluation.generate import Generator
from bidi.experiment import Experiment, load_run
from bidi.files import path_of, write_whole
from bidi.models.config import RecurrentConfig
from bidi.provenance import CompileMeter, provenance

flags.adopt_module_key_flags(trained)  # so that --help shows them
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Times that everything is measured.", lower_bound=1)
# allow_override: `translate` has this flag too, and may be imported into the same program.
_OUTPUT = flags.DEFINE_string(
    "output", None, "A file for all that was measured, as JSON.", allow_override=True
)
_UPDATES = flags.DEFINE_integer("updates", 20, "train: of each model, a round.", lower_bound=1)
_L2R = flags.DEFINE_string("l2r_workdir", None, "search: a run of one direction, to compare with.")
_BEAMS = flags.DEFINE_list("beams", ["1", "4"], "search: values of Search.beam_size.")
_BATCH_TOKENS = flags.DEFINE_list(
    "batch_tokens",
    ["512", "1024", "2048", "4096", "8192"],
    "search: values of Evaluation.batch_tokens.",
)
_SENTENCES = flags.DEFINE_integer(
    "sentences", 500, "search, article: the first so many of the validation split.", lower_bound=1
)
_PROFILE = flags.DEFINE_bool("profile", False, "search: also where the devices' time goes.")


def train(bindings: list[str]) -> None:
    """Measures updates."""
    loaded = _experiment(bindings)
    if loaded.streams.ways != "both":
        raise UserError(
            f"Streams.ways = {loaded.streams.ways!r}: name an experiment of both directions; L2R "
            "alone is measured beside it"
        )
    if loaded.streams.layout == "halves":
        raise UserError(
            "Streams.layout = 'halves' fills rows with other numbers of words than L2R alone: "
            "compare the ms/update of two trainings, whose rows hold equally many"
        )
    prepared = Prepared.open(loaded.data.directory)
    report = updates.measure(
        loaded, prepared, CompileMeter(), rounds=_ROUNDS.value, updates=_UPDATES.value
    )
    tables.print_updates(report, verb.console())
    _write({"updates": _UPDATES.value, **report}, loaded)


def loss(bindings: list[str]) -> None:
    """Measures the loss."""
    loaded = _experiment(bindings)
    if loaded.mesh.tensor != 1:
        raise UserError(f"Mesh.tensor = {loaded.mesh.tensor}: the loss is measured on one device")
    _, target = compiled.vocabularies(loaded)
    report = losses.measure(loaded, target.size, CompileMeter(), rounds=_ROUNDS.value)
    tables.print_loss(report, verb.console())
    _write(report, loaded)


def search(bindings: list[str]) -> None:
    """Measures searches."""
    models = _single_model(bindings)
    (generator,), (step,) = models.system.generators, models.system.steps
    generators = {"model": generator}
    named = {"model": _named(str(models.workdir), step, models.experiment)}
    if _L2R.value:
        generators["L2R"], named["L2R"] = _one_direction(_L2R.value, bindings, models)
    prepared = Prepared.open(models.experiment.data.directory)
    beams, sizes = _numbers(_BEAMS), _numbers(_BATCH_TOKENS)
    sources = [one.source for one in prepared.examples("validation")[: _SENTENCES.value]]
    rows = searches.rows(models.experiment, beams, "L2R" in generators)
    shares = searches.shares(generators, rows, sources) if _PROFILE.value else {}
    report = searches.measure(
        generators, rows, sources, sizes, CompileMeter(), rounds=_ROUNDS.value
    )
    report = {"models": named, "sentences": len(sources), **report, "shares": shares}
    tables.print_searches(report, verb.console())
    _write(report, models.experiment)


def _named(workdir: str, step: int, loaded: Experiment) -> dict[str, str]:
    return {"workdir": workdir, "checkpoint": str(step), "config": loaded.settings.text}


def _one_direction(
    workdir: str, bindings: list[str], beside: trained.Trained
) -> tuple[Generator, dict[str, str]]:
    """The model of `--l2r_workdir`, changed as the other is but for its search, and its name."""
    own = [binding for binding in bindings if not binding.startswith(("Search.", "Agreement."))]
    l2r = load_run(workdir, own)
    if l2r.streams.ways != "l2r":
        raise UserError(
            f"--l2r_workdir={workdir} has Streams.ways = {l2r.streams.ways!r}: name a run of 'l2r'"
        )
    restore.check_vocabularies(beside.workdir, "--l2r_workdir", workdir)
    generator, step = restore.restore_generator(workdir, l2r, "best")
    return generator, _named(workdir, step, l2r)


def article(bindings: list[str]) -> None:
    """Measures the article's search."""
    if _L2R.value:
        raise UserError("--l2r_workdir is not for this: it measures searches of one model")
    models = _single_model(bindings)
    model, search = models.experiment.model, models.experiment.search
    if not (
        isinstance(model, RecurrentConfig)
        and model.interaction == "top"
        and model.copy_prior
        and models.experiment.streams.layout == "whole"
    ):
        raise UserError(
            f"--workdir={models.workdir}: the article's search is that of a model with "
            "Experiment.model = @Recurrent(), Recurrent.interaction = 'top' and "
            "Recurrent.copy_prior = True that writes whole streams"
        )
    his = {"coupling": "product", "partner_weights": "equal", "rank_unfinished": False}
    if others := [name for name, value in his.items() if getattr(search, name) != value]:
        wanted = ", ".join(f"Search.{name} = {his[name]!r}" for name in others)
        raise UserError(f"the article's search has {wanted}")
    prepared = Prepared.open(models.experiment.data.directory)
    sources = [one.source for one in prepared.examples("validation")[: _SENTENCES.value]]
    (generator,) = models.system.generators
    report = product.measure(generator, search, sources, CompileMeter(), rounds=_ROUNDS.value)
    tables.print_article(report, verb.console())
    named = {"workdir": str(models.workdir), "checkpoint": str(models.system.steps[0])}
    _write({"models": {"model": named}, **report}, models.experiment)


def _experiment(bindings: list[str]) -> Experiment:
    """That of `--gin_file`."""
    verb.check_output(_OUTPUT.value)
    for name in ("workdir", "l2r_workdir", "partner_workdir", "checkpoint"):
        if flags.FLAGS[name].present:
            raise UserError(f"--{name} is not for this: it measures an experiment, --gin_file")
    return verb.load(verb.gin_files(), bindings)


def _single_model(bindings: list[str]) -> trained.Trained:
    """The model of `--workdir`."""
    verb.check_output(_OUTPUT.value)
    if flags.FLAGS.partner_workdir:
        raise UserError("--partner_workdir is not for this verb: it measures single searches")
    return trained.load(bindings)


def _numbers(flag: flags.FlagHolder) -> list[int]:
    """The values of a list of numbers."""
    if not flag.value or not all(text.isdecimal() and int(text) for text in flag.value):
        raise UserError(
            f"--{flag.name}={','.join(flag.value)}: write numbers from 1 on, with commas between"
        )
    return [int(text) for text in flag.value]


def _write(report: dict[str, Any], loaded: Experiment) -> None:
    """All of it, by `--output`."""
    if _OUTPUT.value:
        made_with = {"config": loaded.settings.text, "provenance": provenance()}
        whole = {"rounds": _ROUNDS.value, **report, **made_with}
        text = json.dumps(whole, indent=1, ensure_ascii=False, default=dataclasses.asdict)
        write_whole(path_of(_OUTPUT.value), text)


_MEASUREMENTS = {"train": train, "loss": loss, "search": search, "article": article}


if __name__ == "__main__":
    # Seconds of compilation are for who has no compiled programs kept.
    jax.config.update("jax_enable_compilation_cache", False)
    what = sys.argv[1] if sys.argv[1:] else ""
    if what not in (*_MEASUREMENTS, "--help", "-h", "--helpfull"):
        sys.exit(
            f"bidi.benchmark: say first what to measure, {', '.join(_MEASUREMENTS)}; for example "
            "python -m bidi.benchmark train --gin_file=..."
        )
    if what in _MEASUREMENTS:
        sys.argv.pop(1)
    verb.run(f"bidi.benchmark {what}", _MEASUREMENTS.get(what, train))
