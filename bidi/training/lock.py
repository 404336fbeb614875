"""A directory that runs write into belongs to one of them at a time."""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator

import jax
from etils import epath

from bidi.errors import UserError
from bidi.files import in_bucket, lock, on_disk

log = logging.getLogger(__name__)

LOCK_FILE = "lock"
_NOTHING_KEEPS_OUT = "nothing keeps a second run out: see that there is none, or both will spoil it"


@contextlib.contextmanager
def locked(workdir: epath.Path) -> Iterator[None]:
    """Holds a workdir or a directory of pseudo outputs, new or not, while entered.

    In a run of several processes the first of them holds it for all. The lock ends with its
    process, however that ends: a file that a killed run left behind locks nothing. While it is held
    it names the process.

    In a bucket there are no locks, nor on some file systems: it says so, and keeps nobody out.

    Raises:
        UserError: another process holds it.
    """
    if jax.process_index():
        yield
        return
    if in_bucket(workdir):
        log.warning("%s is in a bucket: %s", workdir, _NOTHING_KEEPS_OUT)
        yield
        return
    workdir.mkdir(parents=True, exist_ok=True)
    with on_disk(workdir / LOCK_FILE).open("a+") as held:
        try:
            if not lock(held, wait=False):
                log.warning("%s has no locks: %s", workdir, _NOTHING_KEEPS_OUT)
        except BlockingIOError as error:
            held.seek(0)
            raise UserError(
                f"another run is at work in {workdir} ({held.read() or 'it has just started'}): "
                "wait for it or stop it, or choose another directory"
            ) from error
        held.truncate(0)
        held.write(f"process {os.getpid()} on {socket.gethostname()}")
        held.flush()
        try:
            yield
        finally:
            held.truncate(0)
