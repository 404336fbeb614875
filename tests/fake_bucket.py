"""Buckets that lie in a directory: `gs://` paths without a network, with the ways of objects.

It stands where gcsfs does, below epath. An object appears when its writer is closed (by an
error too, as gcsfs has it), nothing can be added to it, directories are what names have in common,
and none can be renamed.
"""

import importlib.machinery
import io
import pathlib
import sys
import types

import fsspec
from etils.epath import backend
from orbax.checkpoint._src.path import gcs_utils


class _Upload(io.BytesIO):
    def __init__(self, path):
        super().__init__()
        self._path = path

    def close(self):
        if not self.closed:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_bytes(self.getvalue())
        super().close()


class _Buckets(fsspec.AbstractFileSystem):
    protocol = ("gcs", "gs")
    cachable = False
    root: pathlib.Path

    def _objects(self, path=""):
        """Those below a path, not itself."""
        files = (file for file in (self.root / path).rglob("*") if file.is_file())
        # A lock is what tensorstore holds while it writes a file; of objects it needs none.
        return [str(file.relative_to(self.root)) for file in files if file.suffix != ".__lock"]

    def _file(self, path):
        return self.root / self._strip_protocol(path)

    def info(self, path, **kwargs):
        path = self._strip_protocol(path)
        if (file := self.root / path).is_file():
            about = file.stat()
            kind = {"type": "file", "size": about.st_size, "mtime": about.st_mtime}
        elif self._objects(path):
            kind = {"type": "directory", "size": 0}
        else:
            raise FileNotFoundError(path)
        return {"name": path, **kind}

    def ls(self, path, detail=True, **kwargs):
        path = self._strip_protocol(path)
        if self.info(path)["type"] == "file":
            names = [path]
        else:
            below = (name.removeprefix(f"{path}/") for name in self._objects(path))
            names = sorted({f"{path}/{name.split('/')[0]}" for name in below})
        return [self.info(name) for name in names] if detail else names

    def mkdir(self, path, create_parents=True, **kwargs):
        """There are none to make."""

    def makedirs(self, path, exist_ok=False):
        """There are none to make."""

    def rm(self, path, recursive=False, maxdepth=None):
        path = self._strip_protocol(path)
        names = [path] if (self.root / path).is_file() else []
        names += self._objects(path) if recursive else []
        if not names:
            raise FileNotFoundError(path)
        for name in names:
            (self.root / name).unlink()

    def cp_file(self, path1, path2, **kwargs):
        with self.open(path2, "wb") as file:
            file.write(self.cat_file(path1))

    def mv(self, path1, path2, **kwargs):
        raise NotImplementedError(f"{path1}: moving copies, and is not atomic")

    rename = mv

    def _open(self, path, mode="rb", **kwargs):
        if mode == "rb":
            return io.BytesIO(self._file(path).read_bytes())
        if mode == "wb":
            return _Upload(self._file(path))
        raise NotImplementedError(f"{path}: objects cannot be opened with mode {mode!r}")


def install(monkeypatch, root):
    """From now on `gs://` is below `root`."""
    kind = type("Buckets", (_Buckets,), {"root": root})
    gcsfs = types.ModuleType("gcsfs")
    gcsfs.__spec__ = importlib.machinery.ModuleSpec("gcsfs", None)
    monkeypatch.setitem(sys.modules, "gcsfs", gcsfs)
    monkeypatch.setattr(
        backend.fsspec_backend, "_get_filesystem", lambda name: {"gcs": kind()}[name]
    )
    # What orbax asks Google's own clients, and where tensorstore reads and writes arrays.
    monkeypatch.setattr(gcs_utils, "is_hierarchical_namespace_enabled", lambda path: False)
    monkeypatch.setattr(
        gcs_utils,
        "get_kvstore_for_gcs",
        lambda path: {"driver": "file", "path": str(root / path.removeprefix("gs://"))},
    )
