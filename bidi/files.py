"""Files that are written whole or not at all, and files that grow; here or in a bucket."""

import logging
import pathlib

from etils import epath

log = logging.getLogger(__name__)


def in_bucket(path: epath.PathLike) -> bool:
    """Whether a path is one of a bucket (gs://...), which cannot rename, append or lock."""
    return "://" in str(path)


def write_whole(path: epath.PathLike, content: str | bytes) -> None:
    """Writes so that what was there stays until all of it is written.

    Here: under a temporary name beside `path`, which is then renamed. In a bucket an object appears
    when its writing ends, and not before. Text is UTF-8.
    """
    path = epath.Path(path)
    data = content.encode() if isinstance(content, str) else content
    if in_bucket(path):
        path.write_bytes(data)
        return
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    temporary.replace(path)


class GrowingFile:
    """A file that is added to.

    What cannot be written (a full disk) is said, kept, and written with what comes next. In a
    bucket, where nothing can be added to an object, each `flush` writes all of it anew.
    """

    def __init__(self, path: epath.PathLike):
        """Adds to what is there; writes nothing yet."""
        self._path = epath.Path(path)
        there = self._path.exists()
        self._size = self._path.stat().length if there else 0
        self._written = self._path.read_bytes() if there and in_bucket(path) else b""
        self._pending = b""

    def write(self, content: bytes) -> None:
        """To be written by `flush`."""
        self._pending += content

    def flush(self) -> bool:
        """Writes what was added; whether that went well."""
        if not self._pending:
            return True
        try:
            if in_bucket(self._path):
                write_whole(self._path, self._written + self._pending)
                self._written += self._pending
            else:
                self._append()
        except OSError as error:
            log.warning("%s cannot be written, and is tried again later: %s", self._path, error)
            return False
        self._size += len(self._pending)
        self._pending = b""
        return True

    def _append(self) -> None:
        """All that is pending, or nothing of it."""
        with pathlib.Path(self._path).open("ab", buffering=0) as file:
            if file.write(self._pending) != len(self._pending):
                file.truncate(self._size)
                raise OSError("no space left for all of it")

    def close(self) -> None:
        """Writes what was added, or says that it is lost."""
        if not self.flush():
            log.error("%s: the last %d bytes are lost", self._path, len(self._pending))
        self._pending = b""
