"""Scores a trained model: python -m bidi.evaluate --workdir=... [--split=test] [--gin.NAME=value].

Writes eval/<split>-<search>.json and the outputs beside it, and prints a table. With --leak it
measures instead what the streams have from each other, see `bidi.evaluation.leak`, and writes
eval/<split>-leak.json and .png. What was changed of the workdir's settings is in the name too, so
that nothing is replaced but what the same call made.
"""

import dataclasses
import hashlib
import json
import logging
import re
import time
from collections.abc import Collection
from typing import Any

from absl import flags
from etils import epath

from bidi import distributed, experiment, trained, verb
from bidi.data.prepared import Prepared
from bidi.data.sources import Example
from bidi.errors import UserError
from bidi.evaluation import leak, leak_report, report
from bidi.evaluation.choose import System
from bidi.evaluation.found import Found, Hypothesis, Tally
from bidi.files import relative, write_whole
from bidi.provenance import CompileMeter, provenance
from bidi.trained import Trained
from bidi.training.report import training_summary

log = logging.getLogger(__name__)

flags.adopt_module_key_flags(trained)  # so that --help shows them
_SPLIT = flags.DEFINE_enum("split", "test", ["validation", "test"], "What to score on.")
_LEAK = flags.DEFINE_bool("leak", False, "Measure what the streams copy from each other instead.")


def main(bindings: list[str]) -> None:
    """Searches the split, scores what was found, writes and prints it."""
    models = trained.load(bindings)
    if _LEAK.value:
        _measure_leak(models)
        return
    system = models.system
    prepared = _data(models)
    name = f"{_SPLIT.value}-{_search_name(models)}"
    directory = models.workdir / "eval"
    directory.mkdir(parents=True, exist_ok=True)  # by whichever process comes first
    if system.rescores:
        system = _with_choice(system, models.agreement_file, prepared)

    made_with = _made_with(models, prepared)
    compiled, tally, start = CompileMeter(), Tally(), time.perf_counter()
    examples = prepared.examples(_SPLIT.value)
    sources = [example.source for example in examples]
    found = system.find(sources, tally)
    chosen = system.choose(sources, found)
    seconds = time.perf_counter() - start
    if not distributed.is_first():
        return

    result = _report(system, examples, found, chosen)
    result["speed"] = {
        "seconds": seconds,
        "compile_seconds": compiled.seconds,
        "sentences_per_second": len(sources) / max(seconds - compiled.seconds, 1e-9),
        **dataclasses.asdict(tally),
    }
    result |= made_with
    write_whole(directory / f"{name}.txt", "".join(f"{h}\n" for h in result.pop("outputs")))
    write_whole(directory / f"{name}.json", _json(result))
    report.print_results(result, system.evaluation, verb.console())
    print(f"{directory / name}.json")


def _with_choice(system: System, kept: epath.Path, prepared: Prepared) -> System:
    """With the choice that was kept, else with one made now and kept."""
    # Data to be scored on alone have none to choose by: what was chosen for the model stands.
    has_any = "validation" in prepared.manifest["splits"]
    made_by = prepared.digest("validation") if has_any else None
    # Looked at once, by one process: another might find what the first has just written.
    saved = distributed.from_first(lambda: system.saved_choice(kept, made_by))
    if saved is not None:
        return dataclasses.replace(system, choice=saved)
    tuned = system.tuned(prepared)
    if distributed.is_first():
        tuned.save_choice(kept, prepared.digest("validation"))
    return tuned


def _data(models: Trained) -> Prepared:
    """The prepared data; says so where they are none of those that the model was trained on."""
    prepared = Prepared.open(models.experiment.data.directory)
    prepared.check_alike()
    if experiment.data_identity(models.workdir)["fingerprint"] != prepared.manifest["fingerprint"]:
        log.warning(
            "%s was trained on other data than %s holds: what is scored may be among them",
            models.workdir,
            prepared.directory,
        )
    return prepared


# How outputs are searched and chosen, in short.
_IN_SHORT = {
    *("Search.coupling", "Search.beam_size", "Search.partner_weights"),
    *("Agreement.rescore", "Agreement.interact"),
}
# They do not change what is found.
_NEUTRAL = {"Evaluation.batch_tokens", "Evaluation.samples"}
# Of a part of a name: file systems take 255 bytes of all.
_LONGEST = 80


def _search_name(models: Trained) -> str:
    """A short name of how outputs are searched and chosen, and by what."""
    system = models.system
    parts = [system.search.coupling, f"beam{system.search.beam_size}"]
    if system.search.partner_weights != "equal":
        parts.append(f"by-{system.search.partner_weights}")
    if len(system.generators) == 2:
        # One model may be evaluated with several partners, and the outputs compared.
        partner = relative(system.workdirs[1], system.workdirs[0])
        beside = partner.removeprefix("../")
        parts += ["partner", _in_a_name(beside)]
        if beside == partner:
            parts.append(_digest(partner))
    elif system.rescores:
        parts.append("agreement")
    if system.rescores and system.agreement.interact:
        parts.append("interact")
    return "-".join(parts) + _changes(models, _IN_SHORT)


def _changes(models: Trained, unnamed: Collection[str] = ()) -> str:
    """What is not as the workdir's config and `--checkpoint` have it by themselves."""
    before = (models.workdir / experiment.CONFIG_FILE).read_text()
    parts = [
        difference.name.removeprefix("Search.") + _in_a_name(str(difference.new))
        for difference in experiment.differences(before, models.experiment.settings.text)
        if difference.name not in {*unnamed, *_NEUTRAL}
    ]
    if models.checkpoint != "best":
        parts += ["checkpoint", models.checkpoint]
    text = "".join(f"-{part}" for part in parts)
    # The report says it in full.
    return text if len(text) <= _LONGEST else f"-{_digest(text)}"


def _in_a_name(text: str) -> str:
    """A value or path as far as a name can hold it; by a digest where that might be another's."""
    value = re.sub(r"(?<!\w)-(?=[\d.])", "minus", text)  # not that of `seed-2`
    value = re.sub(r"[()\[\]'\"]", "", value.replace(",)", ")")).replace(", ", "-")
    name = re.sub(r"[^\w.+-]+", "-", value).strip("-")
    if name == value and len(name) <= _LONGEST:
        return name
    return f"{name[:_LONGEST]}-{_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _report(
    system: System,
    examples: list[Example],
    found: list[Found],
    chosen: list[Hypothesis | None],
) -> dict[str, Any]:
    generator = system.generators[0]
    shown = system.evaluation.samples
    return {
        **_head(system, examples),
        "agreement": dataclasses.asdict(system.choice) if system.choice else None,
        **report.results(generator, examples, found, chosen, system.evaluation),
        "samples": report.samples(generator, examples[:shown], found[:shown], chosen[:shown]),
        "outputs": [generator.text(hypothesis) for hypothesis in chosen],
    }


def _measure_leak(models: Trained) -> None:
    """Writes and prints how much the streams have from each other."""
    system = models.system
    generator = system.generators[0]
    if len(system.generators) > 1:
        raise UserError("--leak looks into one model: leave out --partner_workdir")
    if not generator.interacts:
        raise UserError(
            f"--leak: the streams of --workdir={models.workdir} do not read each other "
            f"({models.experiment.model.name}.interaction, Streams.ways), so nothing can leak"
        )
    leak_report.require_matplotlib()  # Before the search: it may take long.
    name = f"{_SPLIT.value}-leak{_changes(models)}"
    prepared = _data(models)
    examples = prepared.examples(_SPLIT.value)
    made_with = _made_with(models, prepared)
    found = generator.search([example.source for example in examples], system.search)
    result = {
        **_head(system, examples),
        **leak.measure(generator, examples, found),
        **made_with,
    }
    if not distributed.is_first():
        return
    directory = models.workdir / "eval"
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(directory / f"{name}.png", leak_report.plot(result))
    write_whole(directory / f"{name}.json", _json(result))
    leak_report.print_leak(result, verb.console())
    print(directory / f"{name}.json")


def _head(system: System, examples: list[Example]) -> dict[str, Any]:
    return {
        "split": _SPLIT.value,
        "sentences": len(examples),
        "checkpoints": system.steps,
        "workdirs": system.workdirs,
        "search": dataclasses.asdict(system.search),
    }


def _made_with(models: Trained, prepared: Prepared) -> dict[str, Any]:
    return {
        "examples_sha256": prepared.digest(_SPLIT.value),
        "training": training_summary(models.workdir, models.system.steps[0]),
        "config": models.experiment.settings.text,
        "provenance": provenance(),
    }


def _json(result: dict[str, Any]) -> str:
    return json.dumps(result, indent=1, ensure_ascii=False)


if __name__ == "__main__":
    verb.run("bidi.evaluate", main, processes=True)
