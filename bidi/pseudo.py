"""Pseudo partners: what trained models write for the training pairs, to be read in training.

Labels only, by one model of both directions or by one for each:

    python -m bidi.pseudo --l2r_workdir=... --r2l_workdir=... --output=DIR [--gin.Search.NAME=...]

The whole recipe of `Partner.recipe`: trains the labellers, a set for each fold, in
`Partner.directory/labellers`, labels, then trains the model beside what they wrote:

    python -m bidi.pseudo --gin_file=... --workdir=... [--gin.NAME=value]

The same command again goes on where it was stopped.
"""

import contextlib
import gc
from collections.abc import Iterator

import jax
from absl import flags
from etils import epath

from bidi import distributed, experiment, verb
from bidi.data.partner import PseudoRecipe
from bidi.data.prepared import Prepared
from bidi.data.streams import Direction
from bidi.errors import ConfigError, DataError, UserError
from bidi.evaluation.label import Labellers, label, load_labellers
from bidi.files import expand, path_of
from bidi.training import loop
from bidi.training.lock import locked
from bidi.training.stop import StopOnSignal
from bidi.training.workdir import CannotResumeError, check_claim

# allow_override: see `bidi.trained`.
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where the model lives that is trained last.", allow_override=True
)
_L2R = flags.DEFINE_string(
    "l2r_workdir", None, "A run of bidi.train that writes L2R.", allow_override=True
)
_R2L = flags.DEFINE_string("r2l_workdir", None, "One that writes R2L; may be the same.")
_OUTPUT = flags.DEFINE_string(
    "output", None, "The directory that labels are written to.", allow_override=True
)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "best", "Of both workdirs: best, latest, or a step.", allow_override=True
)


def main(bindings: list[str]) -> None:
    """Runs what the flags ask for."""
    finished = (_run_recipe if flags.FLAGS.gin_file else _label_only)(bindings)
    if not finished and distributed.is_first():
        print("Stopped; the same command goes on")


def _label_only(bindings: list[str]) -> bool:
    if not (_L2R.value and _R2L.value and _OUTPUT.value):
        raise UserError(
            "name models by --l2r_workdir and --r2l_workdir and a directory by --output; or an "
            "experiment by --gin_file and --workdir"
        )
    if _WORKDIR.value:
        raise UserError("--workdir is for --gin_file: labels are written to --output")
    workdirs: dict[Direction, epath.Path] = {
        "l2r": path_of(_L2R.value),
        "r2l": path_of(_R2L.value),
    }
    loaded = verb.load([experiment.config_file(_L2R.value)], bindings)
    verb.check_alike(loaded)
    prepared = Prepared.open(loaded.data.directory)
    labellers = load_labellers(workdirs, _CHECKPOINT.value, prepared, bindings)
    with StopOnSignal() as stop:
        return _label(path_of(_OUTPUT.value), prepared, [labellers], stop)


def _run_recipe(bindings: list[str]) -> bool:
    if _L2R.value or _R2L.value or _OUTPUT.value or _CHECKPOINT.present:
        raise UserError(
            "--gin_file names a recipe with labellers of its own: leave out --l2r_workdir, "
            "--r2l_workdir, --checkpoint and --output"
        )
    loaded = verb.load(verb.gin_files(), bindings)
    if not _WORKDIR.value:
        raise UserError("--workdir is missing: where shall the trained model live?")
    recipe = loaded.partner.recipe
    if recipe is None:
        raise UserError(
            "Partner.recipe is not set: write Partner.recipe = @Pseudo() and Pseudo.labeller_files "
            "= ..., or label with models of your own by --l2r_workdir and --r2l_workdir"
        )
    # Before anything is trained: all that can be known to be wrong. What is checked is what runs,
    # hours later: files may be edited meanwhile.
    verb.check_alike(loaded)
    workdir, prepared = path_of(_WORKDIR.value), Prepared.open(loaded.data.directory)
    check_claim(workdir, prepared, loaded)
    labellers = _checked_labellers(recipe, loaded.data.directory, prepared)
    loop.check(loaded, prepared)
    # Of all phases: one may be over just when it is asked to stop.
    with StopOnSignal() as stop:
        directory, workdirs = expand(loaded.partner.directory), []
        for fold in range(recipe.folds):
            trained = _train_labellers(labellers, directory, fold, recipe.folds, stop)
            if trained is None:
                return False
            workdirs.append(trained)
        if not _label_by(workdirs, directory, prepared, stop) or _asked(stop):
            return False
        # A search that is compiled holds itself in a cycle, and the labeller's parameters on all
        # devices.
        gc.collect()
        return loop.train(loaded, workdir, stop).finished


def _asked(stop: StopOnSignal) -> bool:
    """Whether any process was asked to stop."""
    return any(distributed.allgather(stop.is_set()))


def _checked_labellers(recipe: PseudoRecipe, data: str, prepared: Prepared) -> dict[str, str]:
    """File -> config of each labeller as gin text, of the first fold."""
    texts: dict[str, str] = {}
    writers: list[str] = []
    bindings = [*recipe.labeller_bindings, f"Data.directory = {data!r}", *_fold(0, recipe.folds)]
    for file in recipe.labeller_files:
        with _naming(file):
            labeller = experiment.load([file], bindings)
            verb.check_alike(labeller)
        texts[file] = labeller.settings.text
        writers += labeller.streams.writers
        if recipe.folds > 1 and labeller.training.initialize_from:
            raise ConfigError(
                f"the labeller {file} of Partner.recipe: Training.initialize_from = "
                f"{labeller.training.initialize_from!r}, which may have seen what it shall label: "
                "leave it out, or set Pseudo.folds = 1"
            )
        with _naming(file):
            loop.check(labeller, prepared)
    if sorted(writers) != ["l2r", "r2l"]:
        raise ConfigError(
            f"Pseudo.labeller_files = {recipe.labeller_files!r} write "
            f"{' and '.join(writers) or 'nothing'}: name one model of both directions, or one "
            "for each"
        )
    return texts


def _fold(fold: int, folds: int) -> list[str]:
    """The binding that keeps a fold from those who shall label it."""
    return [f"Training.hold_out = {(fold, folds)}"] if folds > 1 else []


def _train_labellers(
    labellers: dict[str, str],
    directory: epath.Path,
    fold: int,
    folds: int,
    stop: StopOnSignal,
) -> dict[Direction, epath.Path] | None:
    """Trains what labels a fold: direction -> workdir, or None if it was stopped."""
    workdirs: dict[Direction, epath.Path] = {}
    for file, text in labellers.items():
        labeller = experiment.load([], _fold(fold, folds), {f"the config of {file}": text})
        name = f"{labeller.streams.ways}-{fold}-of-{folds}"
        workdir = directory / "labellers" / name
        try:
            if not loop.train(labeller, workdir, stop).finished or _asked(stop):
                return None
        except CannotResumeError as error:
            raise UserError(
                f"{error} It is a labeller's: what it is trained with is said by Partner.recipe, "
                "and where it lies by Partner.directory"
            ) from None
        workdirs |= dict.fromkeys(labeller.streams.directions, workdir)
    return workdirs


@contextlib.contextmanager
def _naming(file: str) -> Iterator[None]:
    """Errors say of which labeller they are."""
    try:
        yield
    except (ConfigError, DataError) as error:
        raise type(error)(f"the labeller {file} of Partner.recipe: {error}") from None


def _label_by(
    workdirs: list[dict[Direction, epath.Path]],
    directory: epath.Path,
    prepared: Prepared,
    stop: StopOnSignal,
) -> bool:
    """`_label` by the models of each fold's workdirs, which nobody holds afterwards."""
    labellers = [load_labellers(of_fold, "best", prepared) for of_fold in workdirs]
    return _label(directory, prepared, labellers, stop)


def _label(
    directory: epath.Path, prepared: Prepared, labellers: list[Labellers], stop: StopOnSignal
) -> bool:
    processes = jax.process_index(), jax.process_count()
    with locked(directory):
        return label(directory, prepared, labellers, stop.is_set, *processes)


if __name__ == "__main__":
    verb.run("bidi.pseudo", main, processes=True)
