"""Lines of text files; what is damaged is said by file and line."""

import contextlib
import gzip
import zlib
from collections.abc import Iterable, Iterator

from etils import epath

from bidi.errors import DataError
from bidi.files import fetched


def read_lines(path: epath.Path) -> Iterator[str]:
    """The lines of a file, plain or gzipped (`.gz`), as `decode_lines` gives them.

    Raises:
      DataError: Bytes that are not UTF-8 or gzip.
    """
    done, file = 0, fetched(path)
    try:
        with contextlib.closing(gzip.open(file) if path.suffix == ".gz" else file.open("rb")) as f:
            for line in decode_lines(f, str(path)):
                yield line
                done += 1
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}, after line {done}: not sound gzip: {error}") from error


def decode_lines(lines: Iterable[bytes], name: str) -> Iterator[str]:
    """Lines without their ends: newline and carriage return, not U+2028 and such; nor a first BOM.

    Args:
      lines: As a binary file gives them.
      name: What they are of, for the error.

    Raises:
      DataError: Bytes that are not UTF-8.
    """
    for number, line in enumerate(lines, 1):
        try:
            text = line.removesuffix(b"\n").removesuffix(b"\r").decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{name}, line {number}: not UTF-8: {error}") from error
        yield text.removeprefix("\ufeff") if number == 1 else text
