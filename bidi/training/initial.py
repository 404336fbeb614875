"""Parameters of a trained model, for another run to start with."""

import logging
from typing import Any

from bidi import distributed
from bidi.data.prepared import Prepared
from bidi.errors import ConfigError
from bidi.experiment import CONFIG_FILE, Experiment, data_identity, differences
from bidi.files import expand
from bidi.training.checkpoints import Checkpoints, checksum

log = logging.getLogger(__name__)


def initial_params(experiment: Experiment, prepared: Prepared, params: Any) -> Any:
    """The best parameters of a workdir, or the newest where none were validated.

    Args:
        experiment: names the workdir, `Training.initialize_from`.
        prepared: the data to be trained on.
        params: of the shapes and on the devices that the restored ones shall have.

    Raises:
        FileNotFoundError: it is no workdir, or has no checkpoint.
        ConfigError: its model has other vocabularies, another shape, or other heads.
    """
    workdir = experiment.training.initialize_from
    path, named = expand(workdir), f"Training.initialize_from = {workdir!r}"
    if not (path / CONFIG_FILE).is_file():
        raise FileNotFoundError(f"{named} holds no {CONFIG_FILE}: it is no workdir of bidi.train")
    trained_with = data_identity(path)["vocabularies"]
    if trained_with != prepared.manifest["vocabularies"]:
        raise ConfigError(
            f"{named} was trained with other vocabularies than those in {prepared.directory}: "
            "name a model that was trained on these data"
        )
    others = _other_settings((path / CONFIG_FILE).read_text(), experiment.settings.text)
    checkpoints = Checkpoints(path, keep=1)
    try:
        step = checkpoints.best_step()
        if step is None:
            raise FileNotFoundError(f"{named} has no checkpoint yet: train it first")
        restored = checkpoints.restore_params(step, params)
    except ValueError as error:
        raise ConfigError(
            f"{named}: its parameters cannot start this model: {str(error).splitlines()[0]}"
            + "".join(others)
        ) from error
    finally:
        checkpoints.close()
    if heads := [other for other in others if ".heads = " in other]:
        raise ConfigError(f"{named}: its parameters mean something else here:{heads[0]}")
    # A run that goes on may have a better one by the time that another process looks.
    distributed.check_alike({f"{named}, parameters with the checksum": int(checksum(restored))})
    log.info("Starting with the parameters of step %d in %s%s", step, path, "".join(others))
    return restored


def _other_settings(there: str, here: str) -> list[str]:
    """By what the model is another one, a line each."""
    return [
        f"\n  {d.name} = {d.old} there, {d.new} here"
        for d in differences(there, here)
        if d.name.startswith(("Experiment.", "Transformer.", "Recurrent.", "Streams."))
    ]
