"""A workdir belongs to one run at a time."""

import contextlib
import fcntl
import logging
import os
import socket
from collections.abc import Iterator

import jax
from etils import epath

from bidi.files import in_bucket, on_disk

log = logging.getLogger(__name__)

LOCK_FILE = "lock"


class InUseError(RuntimeError):
    """Another run is at work in the workdir."""


@contextlib.contextmanager
def locked(workdir: epath.Path) -> Iterator[None]:
    """Holds a workdir, new or not, while entered.

    In a run of several processes the first of them holds it for all. The lock ends with its
    process, however that ends: a file that a killed run left behind locks nothing. While it is held
    it names the process.

    In a bucket there are no locks: it says so, and holds nothing.

    Raises:
        InUseError: another process holds it.
    """
    if jax.process_index():
        yield
        return
    if in_bucket(workdir):
        log.warning(
            "%s is in a bucket, where nothing keeps a second run out: see that there is none, or "
            "both will spoil it",
            workdir,
        )
        yield
        return
    workdir.mkdir(parents=True, exist_ok=True)
    with on_disk(workdir / LOCK_FILE).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise InUseError(
                f"another run is at work in {workdir} ({lock.read() or 'it has just started'}): "
                "wait for it or stop it, or choose another --workdir"
            ) from error
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        try:
            yield
        finally:
            lock.truncate(0)
