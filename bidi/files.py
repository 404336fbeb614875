"""Files that are written whole or not at all, and files that grow."""

import logging
import pathlib

log = logging.getLogger(__name__)


class BucketError(ValueError):
    """A path is in a bucket, where this cannot work."""


def local(path: str) -> pathlib.Path:
    """A path of this machine.

    Raises:
        BucketError: it is in a bucket (gs://...), which `pathlib` would take for a directory here.
    """
    if "://" in path:
        raise BucketError(
            f"{path!r} is in a bucket, but files must be on a file system: name a local directory "
            "and copy it from and to the bucket (gcloud storage rsync -r), or mount the bucket"
        )
    return pathlib.Path(path)


def write_whole(path: pathlib.Path, content: str | bytes) -> None:
    """Writes under a temporary name beside `path`, then renames: what was there stays until then.

    Text is UTF-8.
    """
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    temporary.replace(path)


class GrowingFile:
    """A file that is added to; what a full disk has no room for is written with what comes next."""

    def __init__(self, path: pathlib.Path):
        """Adds to what is there; writes nothing yet."""
        self._path = path
        self._size = path.stat().st_size if path.exists() else 0
        self._pending = b""

    def write(self, content: bytes) -> None:
        """To be written by `flush`."""
        self._pending += content

    def flush(self) -> None:
        """Writes all that was added, or says that it cannot, and writes nothing."""
        if not self._pending:
            return
        try:
            with self._path.open("ab", buffering=0) as file:
                if file.write(self._pending) != len(self._pending):
                    file.truncate(self._size)
                    raise OSError("no space left for all of it")
        except OSError as error:
            log.warning("%s cannot be written, and is tried again later: %s", self._path, error)
            return
        self._size += len(self._pending)
        self._pending = b""

    def close(self) -> None:
        """`flush`, or says that what was added is lost."""
        self.flush()
        if self._pending:
            log.error("%s: the last %d bytes are lost", self._path, len(self._pending))
        self._pending = b""
