"""The flags that name trained models, and loading them: for all verbs that use some."""

import dataclasses

from absl import flags
from etils import epath

from bidi import distributed, verb
from bidi.errors import UserError
from bidi.evaluation.choose import System
from bidi.evaluation.restore import load_system
from bidi.experiment import Experiment, config_file
from bidi.files import path_of

# allow_override: `train` has this flag too, and may be imported into the same program.
_WORKDIR = flags.DEFINE_string("workdir", None, "A run of bidi.train.", allow_override=True)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best, latest, or a step.")
_PARTNER = flags.DEFINE_string(
    "partner_workdir", None, "A second model: the outputs of both are rescored by both."
)


@dataclasses.dataclass(frozen=True)
class Trained:
    """Trained models, ready to write.

    Attributes:
        workdir: of the first.
        experiment: what it was trained with, and what the flags changed.
        checkpoint: what `--checkpoint` asks for.
        system: the models and how their outputs are chosen.
    """

    workdir: epath.Path
    experiment: Experiment
    checkpoint: str
    system: System

    @property
    def agreement_file(self) -> epath.Path:
        """Where the choices of agreement are kept."""
        return self.workdir / "eval" / "agreement_choices.json"


def load(bindings: list[str]) -> Trained:
    """Loads what the flags name."""
    if not _WORKDIR.value:
        raise UserError("--workdir is missing: which run of bidi.train?")
    if flags.FLAGS.gin_file:
        raise UserError(
            "--gin_file is not for this verb: a workdir has its config. Change single values by "
            "--gin.NAME=value"
        )
    workdir = path_of(_WORKDIR.value)
    loaded = verb.load([config_file(_WORKDIR.value)], bindings)
    verb.check_alike(loaded)
    system = load_system(_WORKDIR.value, loaded, _CHECKPOINT.value, _PARTNER.value)
    # Beside a run that goes on, one may find a newer checkpoint than another.
    distributed.check_alike({"a checkpoint of step": system.steps})
    return Trained(workdir, loaded, _CHECKPOINT.value, system)
