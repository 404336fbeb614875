"""The package descriptions that apt keeps on a Debian or Ubuntu machine."""

import bz2
import gzip
import io
import itertools
import lzma
import pathlib
import re
import subprocess
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from bidi.data.text import decode_lines
from bidi.errors import DataError

_OPENERS: dict[str, Callable] = {".bz2": bz2.open, ".gz": gzip.open, ".xz": lzma.open}
# Comes with apt and unpacks all that apt packs its lists with.
_APT_HELPER = pathlib.Path("/usr/lib/apt/apt-helper")
_LIST = re.compile(r".*_(Translation-en|Packages)(\.(bz2|gz|lz4|xz|zst))?")


class Package(NamedTuple):
    """A package.

    Attributes:
      name: Of the package.
      source: The source package that it is built from.
      synopsis: Its description in one line.
      description: The long one; line breaks and white space are single spaces.
    """

    name: str
    source: str
    synopsis: str
    description: str


def read(directory: pathlib.Path) -> list[Package]:
    """Reads the packages that both kinds of lists, descriptions and sources, know; by name.

    Of several descriptions of a package the first counts, files in the order of their names.

    Args:
      directory: Where apt's lists are, plain or packed: `*_Translation-en*` and `*_Packages*`.

    Raises:
      FileNotFoundError: There are no lists of either kind.
      DataError: A list cannot be unpacked, or is none.
    """
    sources: dict[str, str] = {}
    for stanza in _stanzas(directory, "Packages"):
        # "Source: name (version)" stands only where it is not the package itself.
        source = stanza.get("Source", stanza["Package"]).split()[0]
        sources.setdefault(stanza["Package"], source)
    packages: dict[str, Package] = {}
    for stanza in _stanzas(directory, "Translation-en"):
        name = stanza["Package"]
        # Lists of descriptions are for all architectures, those of sources for this one.
        if name in sources and name not in packages:
            synopsis, _, rest = stanza["Description-en"].partition("\n")
            # A line with a dot alone separates paragraphs.
            lines = (line.strip() for line in rest.split("\n"))
            description = " ".join(" ".join(line for line in lines if line != ".").split())
            packages[name] = Package(name, sources[name], synopsis, description)
    return [packages[name] for name in sorted(packages)]


def _stanzas(directory: pathlib.Path, kind: str) -> Iterator[dict[str, str]]:
    """The stanzas of all lists of a kind: field -> value, its continuation lines after newlines."""
    paths = sorted(directory.glob("*")) if directory.is_dir() else []
    paths = [path for path in paths if (m := _LIST.fullmatch(path.name)) and m[1] == kind]
    if not paths:
        raise FileNotFoundError(
            f"{directory} has no lists *_{kind} of apt. On Debian or Ubuntu get them as root by "
            "`apt-get update -o Acquire::Languages=en`; or into a folder of your own by `mkdir -p "
            "lists/partial && apt-get update -o Acquire::Languages=en -o Dir::State::Lists=$PWD/"
            "lists -o Debug::NoLocking=true && export BIDI_APT_LISTS=$PWD/lists`. Elsewhere copy "
            "the folder from such a machine and name it in BIDI_APT_LISTS"
        )
    for path in paths:
        stanza: dict[str, str] = {}
        field = ""
        with _open(path) as file:
            for line in itertools.chain(_lines(file, path), [""]):
                if not line:
                    if stanza:
                        yield stanza
                    stanza, field = {}, ""
                elif line[0] in " \t" and field:
                    stanza[field] += f"\n{line}"
                else:
                    field, colon, value = line.partition(":")
                    if not colon:
                        raise DataError(f"{path}: {line[:80]!r} is no line of a list of apt")
                    stanza[field] = value.strip()


def _lines(file: Iterable[bytes], path: pathlib.Path) -> Iterator[str]:
    try:
        yield from decode_lines(file, str(path))
    except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"{path} cannot be unpacked: {error}") from error


def _open(path: pathlib.Path) -> Any:
    if path.suffix not in (".lz4", ".zst"):
        return _OPENERS.get(path.suffix, open)(path, "rb")
    if not _APT_HELPER.is_file():
        raise DataError(f"{path}: only apt's own {_APT_HELPER} unpacks it here; unpack it yourself")
    run = subprocess.run([_APT_HELPER, "cat-file", path], capture_output=True, check=False)
    if run.returncode:
        raise DataError(f"{path} cannot be unpacked: {run.stderr.decode(errors='replace').strip()}")
    return io.BytesIO(run.stdout)
