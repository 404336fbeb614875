"""A workdir is one run's: its config and data are laid down there, and compared on a resume."""

import json
import logging
import os

from etils import epath

from bidi import distributed
from bidi.config_differences import Difference
from bidi.data.prepared import Prepared
from bidi.data.pseudo import PseudoOutputs
from bidi.errors import PathError, UserError
from bidi.experiment import CONFIG_FILE, DATA_FILE, PLACES, Experiment, differences
from bidi.files import absolute, write_whole
from bidi.provenance import provenance

log = logging.getLogger(__name__)

# What may be another on a resume: it changes nothing of what was computed so far. The data and
# pseudo outputs are compared by what was read, wherever they lie and however they were made.
_FREE = (
    *PLACES,
    "Search.",
    "Agreement.",
    "Evaluation.",
    "Partner.recipe",
    "Pseudo.",
    "Mesh.",
    "Training.steps",
    "Training.evaluate_every",
    "Training.checkpoint_every",
    "Training.log_every",
    "Training.keep_checkpoints",
    "Training.prng_impl",
    "Training.partitioner",
    "Training.skip_nonfinite",
    "Training.on_failed_save",
)


class CannotResumeError(UserError):
    """The workdir holds a run that this experiment cannot go on with."""


def check_claim(workdir: epath.Path, prepared: Prepared, experiment: Experiment) -> None:
    """Looks for what would keep a run out of its workdir, as far as can be told beforehand.

    For what is to be trained much later: nothing is asked of pseudo outputs, which may still have
    to be made.

    Raises:
        PathError: Orbax cannot work there.
        CannotResumeError: it holds a run of another experiment or other data.
    """
    check_place(workdir)
    distributed.from_first(lambda: _compare(workdir, prepared, experiment))


def check_place(workdir: epath.Path) -> None:
    """Looks whether checkpoints can lie here.

    Raises:
        PathError: Orbax cannot work there.
    """
    if "[" in os.fspath(absolute(workdir)):
        raise PathError(
            f"{absolute(workdir)}: in a directory with a bracket in its name Orbax does not find "
            "again what it has saved; choose another --workdir"
        )


def claim(workdir: epath.Path, prepared: Prepared, experiment: Experiment) -> None:
    """Lays down what the workdir's run is: config, vocabularies, data; or compares it.

    Raises:
        CannotResumeError: the workdir holds a run of another experiment or other data.
    """
    saved, data = workdir / CONFIG_FILE, workdir / DATA_FILE
    changed = _compare(workdir, prepared, experiment)
    identity, partner = prepared.identity, experiment.partner
    if partner.kind == "pseudo":
        identity["pseudo"] = PseudoOutputs.open(partner.directory, prepared).identity
        if saved.exists() and json.loads(data.read_text()).get("pseudo") != identity["pseudo"]:
            raise CannotResumeError(
                f"{workdir} was trained beside other pseudo outputs than Partner.directory = "
                f"{partner.directory!r} holds now; name the former, or choose another --workdir"
            )
    for difference in changed:
        log.info("Changed: %s = %s (was %s)", difference.name, difference.new, difference.old)
    workdir.mkdir(parents=True, exist_ok=True)
    for side in ("source", "target"):
        write_whole(workdir / f"{side}.model", (prepared.directory / f"{side}.model").read_bytes())
    write_whole(data, json.dumps(identity, indent=1))
    write_whole(workdir / "provenance.json", json.dumps(provenance(), indent=1))
    # Last: where this file stands, all of them do.
    write_whole(saved, experiment.settings.text)


def _compare(workdir: epath.Path, prepared: Prepared, experiment: Experiment) -> list[Difference]:
    """What is another than in the workdir's run, if it holds one, and may be.

    Raises:
        CannotResumeError: config or data are another and may not.
    """
    if not (workdir / CONFIG_FILE).exists():
        return []
    changed = differences((workdir / CONFIG_FILE).read_text(), experiment.settings.text)
    if refused := [difference for difference in changed if not difference.name.startswith(_FREE)]:
        raise CannotResumeError(
            f"{workdir} holds a run that cannot be resumed with\n"
            + "\n".join(f"  {d.name} = {d.new} (it has {d.old})" for d in refused)
            + "\nTake these back, or choose another --workdir."
        )
    before = json.loads((workdir / DATA_FILE).read_text())
    if any(before.get(key) != value for key, value in prepared.identity.items()):
        raise CannotResumeError(
            f"{workdir} was trained on other data than {prepared.directory} holds now; "
            "prepare the former data again, or choose another --workdir"
        )
    return changed
