"""Several processes that work as one: how they find each other, agree, and share work.

In a single process, the ordinary case, nothing here does anything but call what it is given.
"""

import hashlib
import json
import logging
import os
import pickle
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from bidi.errors import ConfigError

log = logging.getLogger(__name__)

T = TypeVar("T")

# Flags defined here are shown by the --help of the verb.
flags.disclaim_key_flags()

# Until the others end when a process is gone without a word; much less where its connections show.
_HEARTBEAT_SECONDS = 60
# Until those that have finished stop waiting for process 0, which may score for long.
_SHUTDOWN_SECONDS = 3600
# In which process 0, which serves the others, lets them say what they failed of.
_LAST_WORDS_SECONDS = 3


def define_flags() -> None:
    """Defines the flags that say which process this is. Calling it again changes nothing."""
    if "coordinator" in flags.FLAGS:
        return
    flags.DEFINE_string(
        "coordinator", None, "Of several processes: host:port of process 0, the same for all."
    )
    flags.DEFINE_integer("processes", None, "How many there are.", lower_bound=1)
    flags.DEFINE_integer("process", None, "Which of them this is, from 0.", lower_bound=0)
    flags.DEFINE_bool(
        "distributed",
        False,
        "Take --coordinator, --processes and --process from SLURM (srun), a TPU slice, Open MPI or "
        "Kubernetes.",
    )


def initialize() -> None:
    """Joins the other processes, if the flags name any; before anything is computed.

    Raises:
        ConfigError: the flags are not complete, or there is no cluster.
    """
    coordinator, processes, process = _named_by_flags()
    detected = flags.FLAGS.distributed
    if coordinator is None and not detected:
        return
    if process == 0 and coordinator is not None:
        _check_free(coordinator)
    _keep_standard_output()
    # jax takes SIGTERM for itself, and only a loop that asks jax for it would ever notice.
    former = signal.getsignal(signal.SIGTERM)
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            cluster_detection_method=None if detected else "deactivate",
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    except ValueError as error:
        if not detected:
            raise
        raise ConfigError(
            f"--distributed: jax finds no cluster here ({error}); start by srun or on a TPU "
            "slice, or name --coordinator, --processes and --process"
        ) from None
    signal.signal(signal.SIGTERM, former)
    if not is_first():
        logging.getLogger("bidi").setLevel(logging.ERROR)
    if jax.device_count() != jax.process_count() * jax.local_device_count():
        raise ConfigError(
            f"process {jax.process_index()} has {jax.local_device_count()} of {jax.device_count()} "
            f"devices: all {jax.process_count()} processes must have equally many"
        )
    log.info("%d processes, %d devices", jax.process_count(), jax.device_count())


def _check_free(coordinator: str) -> None:
    """Looks whether process 0 can listen there: jax would end without a word of why."""
    port = int(coordinator.rpartition(":")[2])
    try:
        # On any of this machine's addresses, as jax does.
        socket.create_server(("", port)).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"--coordinator={coordinator}: process 0 cannot listen on this port ({error}); end "
            "what does, or name another"
        ) from None


def _keep_standard_output() -> None:
    """For what this program prints: Gloo says there that it is connected, in front of outputs."""
    if sys.stdout is None:
        return
    sys.stdout.flush()
    ours = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = open(ours, "w", buffering=1, encoding=sys.stdout.encoding)  # noqa: PTH123, SIM115


def _named_by_flags() -> tuple[str, int, int] | tuple[None, None, None]:
    """`--coordinator`, `--processes`, `--process`: all three or none."""
    names = ("coordinator", "processes", "process")
    missing = [name for name in names if flags.FLAGS[name].value is None]
    if flags.FLAGS.distributed and len(missing) < 3:
        raise ConfigError(
            "--distributed takes from the cluster what --coordinator, --processes and --process "
            "say: leave out the one or the others"
        )
    if len(missing) == 3:
        return None, None, None
    if missing:
        raise ConfigError(
            f"--{missing[0]} is missing: several processes need --coordinator=host:port of process "
            "0, --processes (how many) and --process (which of them, from 0)"
        )
    values = flags.FLAGS
    coordinator, processes, process = values.coordinator, values.processes, values.process
    if not coordinator.rpartition(":")[2].isdecimal():
        raise ConfigError(f"--coordinator={coordinator} is no host:port")
    if process >= processes:
        raise ConfigError(
            f"--process={process}, but --processes={processes} are counted from 0 to "
            f"{processes - 1}"
        )
    return coordinator, processes, process


def joined() -> bool:
    """Whether this process is one of several, or was started as if."""
    return jax.distributed.is_initialized()


def is_first() -> bool:
    """Whether this process is the one that writes files and prints."""
    return jax.process_index() == 0


def allgather(value: T) -> list[T]:
    """The value of each process, in all of them; whatever can be pickled."""
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([len(data)])).ravel()
    # Powers of two: a program is compiled for every length.
    padded = np.zeros(1 << int(sizes.max() - 1).bit_length(), np.uint8)
    padded[: len(data)] = data
    rows = multihost_utils.process_allgather(padded)
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def from_first(work: Callable[[], T]) -> T:
    """What `work` gives in the first process, which alone calls it; its error is raised in all."""
    if jax.process_count() == 1:
        return work()
    result: Any = None
    error: Exception | None = None
    if is_first():
        try:
            result = work()
        except Exception as caught:  # it is raised below, in this process as well
            error = caught
    result, error = allgather((result, error))[0]
    if error is not None:
        raise error
    return result


def short(value: Any) -> str:
    """What stands for a value (as JSON has it) that is too long for an error of `check_alike`."""
    text = json.dumps(value, sort_keys=True)
    return f"{hashlib.sha256(text.encode()).hexdigest()[:12]}..."


def check_alike(values: Mapping[str, Any]) -> None:
    """Looks whether all processes have the same values: else each would do something of its own.

    Raises:
        ConfigError: one has others; names it, and one of them.
    """
    of_all = allgather(dict(values))
    first = of_all[0]
    for process, theirs in enumerate(of_all):
        for name in sorted(first | theirs):
            if first.get(name) != theirs.get(name):
                raise ConfigError(
                    f"process {process} has {name} = {theirs.get(name)}, process 0 has "
                    f"{first.get(name)}: start all with the same flags, files and data"
                )


def in_shares(work: Callable[..., Sequence[T]], *items: Sequence[Any]) -> list[T]:
    """`work(*items)`, each process doing its share; all get the whole, in order.

    Args:
        work: gives one result for each item.
        items: lists of one length, the same in all processes.
    """
    count = jax.process_count()
    if count == 1:
        return list(work(*items))
    # Every count-th: whatever the order of the items, the shares are alike.
    shares = allgather(work(*(listed[jax.process_index() :: count] for listed in items)))
    return [shares[place % count][place // count] for place in range(len(items[0]))]


class Votes:
    """Whether any process wants something: known to all at the same count of votes.

    A vote is a small program of its own that is sent off and looked at one vote later: nothing
    waits for the device's work of the moment. In a single process it is known at once.
    """

    def __init__(self) -> None:
        """Compiles nothing yet."""
        self._pending: jax.Array | None = None
        if jax.process_count() == 1:
            return
        mesh = jax.sharding.Mesh(np.array(jax.devices()), ("devices",))
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        divided = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("devices"))
        self._any = jax.jit(jax.numpy.any, out_shardings=everywhere)
        self._ballots = [
            jax.make_array_from_process_local_data(divided, np.full(jax.local_device_count(), mine))
            for mine in (False, True)
        ]

    def any(self, mine: bool) -> bool:
        """Casts this process's vote; all processes call it equally often."""
        if jax.process_count() == 1:
            return mine
        before, self._pending = self._pending, self._any(self._ballots[mine])
        return before is not None and bool(before)


def leave() -> None:
    """Waits until all processes are done. In a single process it does nothing."""
    jax.distributed.shutdown()


def fail(message: str) -> NoReturn:
    """Ends this process with a message, if any, and status 1, and soon the others too.

    Not by an ordinary exit: that would wait for the others, which may be waiting for this one.
    """
    try:
        if message:
            print(message, file=sys.stderr, flush=True)
        if is_first():
            time.sleep(_LAST_WORDS_SECONDS)
        sys.stdout.flush()
    finally:  # even where what it prints to is closed
        os._exit(1)
