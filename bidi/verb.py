"""What all verbs share: flags, gin bindings, log, and errors without a traceback."""

import errno
import logging
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence

import rich.console
from absl import app, flags
from absl import logging as absl_logging

from bidi import config, distributed, experiment
from bidi.config_differences import values_of
from bidi.errors import ConfigError, UserError
from bidi.experiment import Experiment
from bidi.files import in_bucket, path_of

# Flags defined here are shown by the --help of the verb.
flags.disclaim_key_flags()

# What is said in a line; anything else shows where it was.
USER_ERRORS = (
    UserError,
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    ModuleNotFoundError,
)

# A file system that is read-only or gone, and paths that are none.
_UNFIT = {errno.EROFS, errno.ESTALE, errno.ELOOP, errno.ENAMETOOLONG}

# What each of several processes may have its own of.
_SETTINGS_OF_ONE = {*experiment.PLACES, "Training.initialize_from"}
_FLAGS_OF_ONE = {
    *("process", "coordinator", "gin_file", "input", "output"),
    *("workdir", "partner_workdir", "l2r_workdir", "r2l_workdir"),
}

# The libraries that write records and checkpoints say it by errors of other kinds, in these words.
_FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))


def run(name: str, main: Callable[[list[str]], None], *, processes: bool = False) -> None:
    """Runs a verb.

    Args:
        name: as the user calls it, `bidi.train`.
        main: is given the bindings of `--gin.NAME=value`.
        processes: whether several processes may do it together, see `bidi.distributed`.
    """
    config.define_flags()
    if processes:
        distributed.define_flags()
    try:
        arguments, bindings = config.gin_arguments(sys.argv)
    except ConfigError as error:
        sys.exit(f"{name}: {error}")

    def guarded(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
        _log_to_stderr()
        try:
            if processes and not flags.FLAGS.print_config:
                distributed.initialize()
            main(bindings)
            distributed.leave()
        except BaseException as error:
            advice = _advice(error)
            if distributed.joined():
                if isinstance(error, SystemExit):  # it has said what it had to
                    distributed.fail("")
                distributed.fail(f"{name}: {advice}" if advice else traceback.format_exc())
            if advice is None:
                raise
            sys.exit(f"{name}: {advice}")

    app.run(guarded, argv=arguments)


def _advice(error: BaseException) -> str | None:
    """What is said of an error in place of a traceback; None of a fault of ours."""
    if isinstance(error, USER_ERRORS):
        return str(error)
    if isinstance(error, OSError) and error.errno in _UNFIT:
        return str(error)
    if any(words in str(error) for words in _FULL):
        return f"{error}; make room there, then run the same command again"
    return None


class _StderrHandler(logging.StreamHandler):
    """Writes to what `sys.stderr` is at that moment: a progress bar puts itself in between."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def _log_to_stderr() -> None:
    """Our own log from INFO on; the libraries' (they use absl's) from WARNING on."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    handler = _StderrHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    ours = logging.getLogger("bidi")
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    ours.propagate = False


def check_output(output: str | None) -> None:
    """Looks whether `--output` can be written, before time is spent on what is to be in it.

    Raises:
        UserError: there is no such directory, or nothing can be written to the bucket.
    """
    if not output:
        return
    path = path_of(output)
    if not in_bucket(path):
        if not path.parent.is_dir():
            raise UserError(f"--output={output}: there is no such directory, make it first")
    elif distributed.is_first():
        probe = path.with_name(f"{path.name}.probe")
        try:
            probe.write_bytes(b"")
            probe.unlink()
        except Exception as error:  # each library that reads buckets has errors of its own
            raise UserError(f"--output={output} cannot be written: {error}") from error


def console() -> rich.console.Console:
    """For tables, which are not broken for a terminal's width where none shows them."""
    seen = sys.stdout is not None and sys.stdout.isatty()
    return rich.console.Console(width=None if seen else 160)


def check_alike(loaded: Experiment) -> None:
    """Looks whether all processes were started with the same settings, flags and files.

    Raises:
        ConfigError: see `distributed.check_alike`.
    """
    settings = {
        name: value
        for name, value in values_of(loaded.settings.text).items()
        if name not in _SETTINGS_OF_ONE
    }
    shared = {
        f"--{name}": str(flags.FLAGS[name].value)
        for name in flags.FLAGS
        if name not in _FLAGS_OF_ONE
    }
    distributed.check_alike(settings | shared)


def load(
    files: Sequence[str], bindings: Sequence[str], texts: Mapping[str, str] | None = None
) -> Experiment:
    """As `experiment.load`; with `--print_config` the verb ends there, having printed it."""
    loaded = experiment.load(files, bindings, texts)
    if flags.FLAGS.print_config:
        print(loaded.settings.description)
        sys.exit()
    return loaded


def gin_files() -> list[str]:
    """`--gin_file`, one at least."""
    if not flags.FLAGS.gin_file:
        raise UserError("--gin_file is missing: name an experiment, see experiments/")
    return flags.FLAGS.gin_file
