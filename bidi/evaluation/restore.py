"""A trained model from its workdir."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from bidi.data.vocabulary import Vocabulary
from bidi.errors import DataError, UserError
from bidi.evaluation.choose import System
from bidi.evaluation.generate import Generator
from bidi.experiment import Experiment, data_identity, load_run
from bidi.files import Name, path_of
from bidi.models.model import Model
from bidi.search.config import SearchConfig
from bidi.training.checkpoints import Checkpoints


def restore_generator(
    workdir: str, experiment: Experiment, checkpoint: str
) -> tuple[Generator, int]:
    """The model of a workdir and the step that it was saved at.

    Args:
        workdir: of `bidi.train`.
        experiment: the workdir's.
        checkpoint: `best` (by validation loss), `latest`, or a step.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        DataError: it is damaged, or of a model of other shapes.
    """
    path = path_of(workdir)
    source, target = (
        Vocabulary((path / f"{side}.model").read_bytes()) for side in ("source", "target")
    )
    model = experiment.make_model(source, target)
    checkpoints = Checkpoints(path, experiment.training.keep_checkpoints)
    try:
        step = _step(checkpoints, checkpoint)
        params = _params(checkpoints, step, model)
    finally:
        checkpoints.close()
    generator = Generator(
        model,
        params,
        experiment.streams,
        source,
        target,
        experiment.max_source_length,
        experiment.evaluation.batch_tokens,
    )
    return generator, step


def load_system(
    workdir: str, experiment: Experiment, checkpoint: str, partner_workdir: str | None
) -> System:
    """The system that a workdir, or two of them, make up.

    Args:
        workdir: of `bidi.train`.
        experiment: the workdir's, whose search, agreement and evaluation count for both, but for
            the coupling.
        checkpoint: of either, see `restore_generator`.
        partner_workdir: of a second model, whose outputs are pooled with the first's; or None.

    Raises:
        FileNotFoundError: there is no such workdir or checkpoint.
        UserError: the models' vocabularies differ, the search is none that the partner can
            do, agreement is asked for and there is one score of an output alone, or scores with
            interaction of a model without it.
    """
    rescore = experiment.agreement.rescore or bool(partner_workdir)
    generators = [restore_generator(workdir, experiment, checkpoint)]
    # Candidates are as many as agreement wants.
    one_best = dataclasses.replace(experiment.search, n_best=1)
    searches = [one_best if rescore else experiment.search]
    if partner_workdir:
        check_vocabularies(workdir, "--partner_workdir", partner_workdir)
        # Not `experiment`: the partner may have a direction and a shape of its own.
        partner = load_run(partner_workdir, [])
        partner = dataclasses.replace(partner, evaluation=experiment.evaluation)
        searches.append(_search_of_partner(one_best, partner, partner_workdir))
        generators.append(restore_generator(partner_workdir, partner, checkpoint))
    workdirs = (workdir, partner_workdir) if partner_workdir else (workdir,)
    models = tuple(generator for generator, _ in generators)
    if rescore:
        _check_scores(workdirs, models, experiment.agreement.interact)
        searches = [
            _for_candidates(search, generator, experiment.agreement.n_best)
            for search, generator in zip(searches, models, strict=True)
        ]
    return System(
        generators=models,
        workdirs=workdirs,
        steps=tuple(step for _, step in generators),
        searches=tuple(searches),
        agreement=dataclasses.replace(experiment.agreement, rescore=rescore),
        evaluation=experiment.evaluation,
    )


def check_vocabularies(workdir: Name, flag: str, other: str) -> None:
    """Looks whether the model that a flag names can stand beside that of `--workdir`.

    Raises:
        FileNotFoundError: one of them is no workdir.
        UserError: their vocabularies differ.
    """
    first, second = (data_identity(path)["vocabularies"] for path in (workdir, other))
    if first != second:
        raise UserError(
            f"{flag}={other} has other vocabularies than --workdir={workdir}: train both on the "
            "same prepared data"
        )


def _search_of_partner(search: SearchConfig, partner: Experiment, workdir: str) -> SearchConfig:
    search = dataclasses.replace(search, coupling=partner.search.coupling)
    try:
        search.make_coupling(len(partner.streams.directions))
    except ValueError as error:
        raise UserError(
            f"--partner_workdir={workdir} is searched with its own coupling and otherwise with "
            f"--workdir's settings: {error}"
        ) from None
    return search


def _for_candidates(search: SearchConfig, generator: Generator, n_best: int) -> SearchConfig:
    """With as many hypotheses as asked for, or as there are."""
    hypotheses = search.make_coupling(len(generator.streams.directions)).hypotheses
    return dataclasses.replace(search, n_best=min(n_best, hypotheses))


def _check_scores(workdirs: Sequence[str], generators: Sequence[Generator], interact: bool) -> None:
    names = generators[0].streams.writers
    if len(generators) == 1 and len(names) == 1:
        raise UserError(
            f"agreement needs two scores of an output, but the model of --workdir={workdirs[0]} "
            f"gives one, {names[0]}: use a model of both directions, or a second model "
            "(--partner_workdir)"
        )
    for workdir, generator in zip(workdirs, generators, strict=True):
        if interact and not generator.interacts:
            raise UserError(
                f"Agreement.interact = True, but the streams of {workdir} do not read each other: "
                "leave it False for models without interaction"
            )


def _step(checkpoints: Checkpoints, checkpoint: str) -> int:
    steps = checkpoints.all_steps()
    by_name = {"best": checkpoints.best_step(), "latest": checkpoints.latest_step()}
    if checkpoint not in by_name and not checkpoint.isdecimal():
        raise FileNotFoundError(f"--checkpoint={checkpoint} is none of best, latest or a step")
    step = by_name[checkpoint] if checkpoint in by_name else int(checkpoint)
    if step not in steps:
        raise FileNotFoundError(
            f"{checkpoints.directory} has no checkpoint {checkpoint!r}; it has {steps or 'none'}"
        )
    return step


def _params(checkpoints: Checkpoints, step: int, model: Model) -> Any:
    try:
        return checkpoints.restore_params(step, _shapes(model))
    except Exception as error:  # damage shows as errors of many libraries
        raise DataError(
            f"{checkpoints.directory / str(step)} cannot be read: {type(error).__name__}: "
            f"{str(error)[:300]}. Where settings of the model were changed, take them back; where "
            f"it is damaged, name another by --checkpoint: there are {checkpoints.all_steps()}"
        ) from error


def _shapes(model: Model) -> Any:
    """Shapes of the parameters, on all devices of this process."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), model.smallest_batch())["params"]
    mesh = jax.sharding.Mesh(jax.local_devices(), ("devices",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), shapes
    )
