"""Trains: python -m bidi.train --gin_file=... --workdir=... [--gin.NAME=value ...].

The same command again goes on where the run stopped; SIGTERM or Ctrl-C save first.
"""

from absl import flags

from bidi import distributed, verb
from bidi.errors import UserError
from bidi.files import path_of
from bidi.training import loop

# allow_override: see `bidi.trained`.
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where the run lives; new, or one to go on with.", allow_override=True
)


def main(bindings: list[str]) -> None:
    """Loads the experiment and trains it."""
    loaded = verb.load(verb.gin_files(), bindings)
    if not _WORKDIR.value:
        raise UserError("--workdir is missing: where shall the run live?")
    verb.check_alike(loaded)
    outcome = loop.train(loaded, path_of(_WORKDIR.value))
    if not outcome.finished and distributed.is_first():
        print(
            f"Stopped at step {outcome.step} of {loaded.training.steps}; the same command goes on"
        )


if __name__ == "__main__":
    verb.run("bidi.train", main, processes=True)
