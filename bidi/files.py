"""Places that users name, on a file system or in a bucket; files that are written whole or grow.

A path is an `etils.epath.Path`, made here of what the user wrote and passed on: `gs://...` is in a
bucket. There an object appears when its writer is done, whole, and replaces the former at once; but
nothing can be added to it, a directory is only what names have in common, and renaming one copies
its objects one by one. What needs more than this interface has a function here.
"""

import contextlib
import errno
import fcntl
import fnmatch
import hashlib
import importlib.util
import logging
import os
import pathlib
import posixpath
import re
import shutil
import string
import tempfile
from collections.abc import Iterator, Mapping
from typing import IO

from etils import epath

from bidi.errors import PathError

log = logging.getLogger(__name__)

_BUCKET = "gs://"

Name = str | os.PathLike[str]


def path_of(name: Name) -> epath.Path:
    """The path that a user named: of this machine, or `gs://...`.

    Raises:
        PathError: it is another kind of address, or what reads buckets is not installed.
    """
    text = os.fspath(name)
    if text.startswith(_BUCKET):
        # epath reads buckets by TensorFlow where that is installed, else by gcsfs.
        if not any(map(importlib.util.find_spec, ("gcsfs", "tensorflow"))):
            raise PathError(
                f"{text!r} is in a bucket, which needs gcsfs: pip install 'bidi[gcs]', or name a "
                "local directory"
            )
    elif re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", text):
        # A path otherwise, whose directory `s3:` would be made here.
        raise PathError(
            f"{text!r}: paths are of this machine or in a bucket of Google Cloud Storage (gs://...)"
        )
    # A shell does not expand the `~` in `--workdir=~/runs`. A `~x` of no user stays as it is.
    return epath.Path(text if in_bucket(text) else os.path.expanduser(text))  # noqa: PTH111


def expand(path: str) -> epath.Path:
    """The path that a config names, with `~` and `$VAR` filled in.

    Raises:
        PathError: a variable is not set, or it is of a kind that cannot be worked with.
    """
    try:
        filled = string.Template(path).substitute(os.environ)
    except KeyError as error:
        raise PathError(
            f"{path!r}: the environment variable {error.args[0]} is not set: "
            f"export {error.args[0]}=... first"
        ) from error
    except ValueError as error:
        raise PathError(f"{path!r}: write $NAME or ${{NAME}}, and $$ for a dollar") from error
    return path_of(filled)


def in_bucket(path: Name) -> bool:
    """Whether a path is none of this machine's."""
    return os.fspath(path).startswith(_BUCKET)


def on_disk(path: Name) -> pathlib.Path:
    """A path of this machine, for what only a file system can do."""
    assert not in_bucket(path), path
    return pathlib.Path(path)


def absolute(path: Name) -> epath.Path:
    """A path that means the same in whatever directory one is."""
    expanded = path_of(path)
    return expanded if in_bucket(expanded) else path_of(on_disk(expanded).resolve())


def relative(path: str, to: str) -> str:
    """How one directory is named from another; by its own name where nothing leads there."""
    if in_bucket(path) != in_bucket(to):
        return path
    return posixpath.relpath(absolute(path), absolute(to))


def is_plain_file(path: epath.Path) -> bool:
    """Whether a file is there that can be replaced; a pipe, which epath takes for one, is none."""
    return path.is_file() if in_bucket(path) else on_disk(path).is_file()


def matching(directory: epath.Path, pattern: str) -> list[epath.Path]:
    """What lies in a directory, or in none, under names like `train-*`, in order."""
    # Not by `glob`: epath takes brackets in the directory's own name for a pattern.
    try:
        paths = sorted(directory.iterdir())
    except FileNotFoundError:
        return []
    # A bucket may list a directory in itself: an object that the console made to show it.
    return [path for path in paths if path != directory and fnmatch.fnmatch(path.name, pattern)]


@contextlib.contextmanager
def writing_whole(path: epath.Path) -> Iterator[pathlib.Path]:
    """Gives a file of this machine to write; once that is done, and not before, it is at `path`.

    What was there stays until then, and where writing raises.
    """
    if in_bucket(path):
        # Not by a writer of the bucket: leaving its `with` by an error would complete the object.
        directory = pathlib.Path(tempfile.mkdtemp())
        written = directory / path.name
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, directory)
            yield written
            try:
                _upload(written, path)
            except Exception as error:  # each library that reads buckets has errors of its own
                stack.pop_all()
                raise PathError(
                    f"{path} cannot be written: {error}. What was to be there is in {written}"
                ) from error
        return
    temporary = on_disk(path.with_name(path.name + ".tmp"))
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        # Opening names the file, writing does not.
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            error.filename = error.filename or os.fspath(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: epath.Path, content: str | bytes) -> None:
    """As `writing_whole`, of a content that is there already. Text is UTF-8."""
    content = content.encode() if isinstance(content, str) else content
    if in_bucket(path):
        path.write_bytes(content)
        return
    with writing_whole(path) as temporary:
        temporary.write_bytes(content)


def write_directory(directory: epath.Path, files: Mapping[str, bytes], last: str) -> None:
    """Makes a directory of files that is complete or absent; in a bucket, or lacks `last`."""
    if in_bucket(directory):
        for name in sorted(files, key=lambda name: name == last):
            write_whole(directory / name, files[name])
        return
    parent = on_disk(directory.parent)
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}.", dir=parent) as place:
        whole = pathlib.Path(place) / directory.name
        whole.mkdir()
        for name, content in files.items():
            (whole / name).write_bytes(content)
        whole.rename(directory)


def upload_directory(source: os.PathLike[str], directory: epath.Path, last: str) -> None:
    """Copies all files below a directory into a bucket; whoever finds `last` finds them all."""
    root = pathlib.Path(source)
    paths = [path for path in root.rglob("*") if path.is_file() and path != root / last]
    for path in [*paths, root / last]:
        _upload(path, directory / path.relative_to(root).as_posix())


def remove(path: epath.Path) -> None:
    """Removes a file, or a directory with what lies in it; nothing where neither is there."""
    if in_bucket(path):
        if path.is_dir():
            path.rmtree(missing_ok=True)
        elif path.exists():
            path.unlink(missing_ok=True)
    elif path.is_dir():
        # Another process may be removing it, too: what counts is whether it is gone.
        shutil.rmtree(path, ignore_errors=True)
        if path.is_dir():
            log.warning("%s cannot be removed", path)
    else:
        path.unlink(missing_ok=True)


def move_directory(source: epath.Path, target: epath.Path) -> None:
    """Renames; in a bucket object by object, so that both are incomplete if it is stopped."""
    if not in_bucket(source):
        source.rename(target)
        return
    for path in list(source.iterdir()):
        if path.is_dir():
            move_directory(path, target / path.name)
        else:
            path.copy(target / path.name)
            path.unlink()


def lock(file: IO[str], *, wait: bool) -> bool:
    """Locks an open file, for as long as it is open; False where its file system has no locks.

    Raises:
        BlockingIOError: another process holds it, and is not waited for.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        # Lustre by default, and some of those that are made of something else.
        if error.errno in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            return False
        raise
    return True


def fetched(path: epath.Path) -> pathlib.Path:
    """A file as one of this machine: itself, or a copy of what lies in a bucket, made once.

    Copies are kept in `$BIDI_CACHE` (else ~/.cache/bidi), by the object's path, size and time.

    Raises:
        FileNotFoundError: there is none in the bucket.
        PathError: copies cannot be kept there.
    """
    if not in_bucket(path):
        return on_disk(path)
    about = path.stat()
    key = hashlib.sha256(f"{path} {about.length} {about.mtime}".encode()).hexdigest()[:20]
    cache = pathlib.Path(os.environ.get("BIDI_CACHE") or "~/.cache/bidi").expanduser()
    if in_bucket(os.environ.get("BIDI_CACHE", "")):
        raise PathError(f"BIDI_CACHE={os.environ['BIDI_CACHE']}: name a directory of this machine")
    copy = cache / key / path.name
    copy.parent.mkdir(parents=True, exist_ok=True)
    # Of the processes of a machine the first copies and the others wait; the lock ends with it.
    with copy.with_name("lock").open("w") as held:
        if not lock(held, wait=True):
            raise PathError(
                f"{cache} is on a file system without locks: name a directory of this machine's "
                "own disk by $BIDI_CACHE"
            )
        if not copy.exists() or copy.stat().st_size != about.length:
            log.info("Copying %s to %s", path, cache)
            part = copy.with_name("part")
            with path.open("rb") as source, part.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
            if part.stat().st_size != about.length:
                raise OSError(f"{path} has {about.length} bytes, of which some did not arrive")
            part.replace(copy)
    return copy


def _upload(source: pathlib.Path, path: epath.Path) -> None:
    with source.open("rb") as file, path.open("wb") as sink:
        shutil.copyfileobj(file, sink, 1 << 20)


class GrowingFile:
    """A file that is added to; what a full disk has no room for is written with what comes next.

    In a bucket, where nothing can be added to an object, all of it is kept here and written anew.
    """

    def __init__(self, path: epath.Path):
        """Adds to what is there; writes nothing yet."""
        self._path = path
        self._in_bucket = in_bucket(path)
        self._size, self._kept, self._pending = 0, b"", b""
        if path.exists() and self._in_bucket:
            self._kept = path.read_bytes()
        elif path.exists():
            self._size = on_disk(path).stat().st_size

    def write(self, content: bytes) -> None:
        """To be written by `flush`."""
        self._pending += content

    def flush(self) -> None:
        """Writes all that was added, or says that it cannot, and writes nothing."""
        if not self._pending:
            return
        try:
            self._rewrite() if self._in_bucket else self._append()
        except Exception as error:  # each library that reads buckets has errors of its own
            if not (self._in_bucket or isinstance(error, OSError)):
                raise
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

    def _append(self) -> None:
        with on_disk(self._path).open("ab", buffering=0) as file:
            if file.write(self._pending) != len(self._pending):
                file.truncate(self._size)
                raise OSError("no space left for all of it")

    def _rewrite(self) -> None:
        write_whole(self._path, self._kept + self._pending)
        self._kept += self._pending
