"""Files that are written whole or not at all."""

import pathlib


def write_whole(path: pathlib.Path, content: str | bytes) -> None:
    """Writes under a temporary name beside `path`, then renames: what was there stays until then.

    Text is UTF-8.
    """
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    temporary.replace(path)
