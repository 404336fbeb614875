"""Files under a full disk, and in buckets."""

import concurrent.futures
import errno
import importlib.util
import io
import os
import pathlib
import shutil
import sys
import time

import pytest

from bidi import distributed, verb
from bidi.errors import PathError, UserError
from bidi.files import (
    GrowingFile,
    expand,
    fetched,
    path_of,
    relative,
    remove,
    upload_directory,
    write_directory,
    write_whole,
    writing_whole,
)
from tests import fake_bucket

FULL = pathlib.Path("/dev/full")


def test_home_is_meant_wherever_a_shell_leaves_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert path_of("~/runs/x") == path_of(tmp_path / "runs" / "x")
    assert str(path_of("runs/~/x")) == "runs/~/x"


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full here")
def test_what_has_no_room_is_named(tmp_path):
    """A write's own error names no file; nor is the full one removed."""
    (tmp_path / "out.tmp").symlink_to(FULL)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/out'"):
        write_whole(path_of(tmp_path / "out"), "new")
    assert FULL.exists()


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device", "out"), RuntimeError("write(): Disk quota exceeded")],
)
def test_a_full_disk_is_said_in_a_line(error, monkeypatch):
    """Not as a traceback, whatever library says it; faults of ours are."""

    def main(bindings):
        raise error if not bindings else RuntimeError(bindings[0])

    monkeypatch.setattr(verb, "_log_to_stderr", lambda: None)
    monkeypatch.setattr(sys, "argv", ["verb"])
    with pytest.raises(SystemExit, match=rf"bidi\.verb: .*{error.args[-1][-8:]}.*make room there"):
        verb.run("bidi.verb", main)
    monkeypatch.setattr(sys, "argv", ["verb", "--gin.A=1"])
    with pytest.raises(RuntimeError, match="A = 1"):
        verb.run("bidi.verb", main)


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENAMETOOLONG])
def test_a_place_that_is_unfit_is_said_in_a_line(number, monkeypatch):
    def main(bindings):
        raise OSError(number, os.strerror(number), "out")

    monkeypatch.setattr(verb, "_log_to_stderr", lambda: None)
    monkeypatch.setattr(sys, "argv", ["verb"])
    with pytest.raises(SystemExit, match=rf"bidi\.verb: .*{os.strerror(number)}: 'out'"):
        verb.run("bidi.verb", main)


@pytest.mark.parametrize(
    ("error", "says"), [(SystemExit(1), ""), (UserError("no"), "bidi.verb: no")]
)
def test_one_of_several_processes_ends_without_waiting(error, says, monkeypatch):
    """One that has said what it had to, as where a pipe is closed, says no more."""

    def main(bindings):
        raise error

    ended = []
    monkeypatch.setattr(distributed, "joined", lambda: True)
    monkeypatch.setattr(distributed, "fail", lambda text: ended.append(text) or os._exit)
    monkeypatch.setattr(verb, "_log_to_stderr", lambda: None)
    monkeypatch.setattr(sys, "argv", ["verb"])
    with pytest.raises(SystemExit):
        verb.run("bidi.verb", main)
    assert ended[0] == says


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full here")
def test_what_cannot_be_written_is_kept_and_comes_later(tmp_path, caplog):
    path = tmp_path / "rows"
    path.write_bytes(b"old\n")
    target = tmp_path / "link"
    target.symlink_to(FULL)
    file = GrowingFile(target)
    file.write(b"one\n")
    file.flush()
    assert "No space left" in caplog.text
    target.unlink()
    target.symlink_to(path)
    file.write(b"two\n")
    file.flush()
    assert path.read_bytes() == b"old\none\ntwo\n"
    target.unlink()
    target.symlink_to(FULL)
    file.write(b"three\n")
    file.close()
    assert "the last 6 bytes are lost" in caplog.text


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    fake_bucket.install(monkeypatch, tmp_path / "buckets")
    monkeypatch.setenv("BIDI_CACHE", str(tmp_path / "cache"))
    return path_of("gs://bucket")


def test_what_cannot_be_removed_is_said(tmp_path, monkeypatch, caplog):
    kept, gone = path_of(tmp_path / "kept"), path_of(tmp_path / "gone")
    for directory in (kept, gone):
        directory.mkdir()
    remove(gone)
    remove(path_of(tmp_path / "never there"))
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    remove(kept)
    assert caplog.messages == [f"{kept} cannot be removed"]
    assert not gone.exists()


@pytest.mark.parametrize("name", ["s3://bucket/run", "http://host/run", "gs:/bucket/run"])
def test_other_addresses_are_refused(name):
    for function in (path_of, expand):
        with pytest.raises(PathError, match=f"'{name}'.*of this machine or .*gs://"):
            function(name)


def test_what_reads_buckets_must_be_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PathError, match=r"'gs://bucket/run' .*pip install 'bidi\[gcs\]'"):
        path_of("gs://bucket/run")
    assert path_of("runs/a") == pathlib.Path("runs/a")


@pytest.mark.parametrize("where", ["here", "bucket"])
def test_what_is_not_written_to_its_end_changes_nothing(bucket, tmp_path, where):
    directory = path_of(tmp_path / "here") if where == "here" else bucket
    directory.mkdir(exist_ok=True)
    path = directory / "file"
    write_whole(path, "former")

    def write_half():
        with writing_whole(path) as file:
            file.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    # Nor is half a file left beside it.
    assert [path.name for path in directory.iterdir()] == ["file"]
    assert path.read_text() == "former"
    with writing_whole(path) as file:
        file.write_text("new")
    assert path.read_text() == "new"


@pytest.mark.parametrize("where", ["here", "bucket"])
def test_a_file_grows_and_goes_on_later(bucket, tmp_path, where, monkeypatch, caplog):
    directory = path_of(tmp_path) if where == "here" else bucket
    path = directory / "rows"
    for lines in (["one"], ["two", "three"]):
        file = GrowingFile(path)
        for line in lines:
            file.write(f"{line}\n".encode())
            file.flush()
        file.close()
    assert path.read_text() == "one\ntwo\nthree\n"
    if where == "here":
        return

    def fail(self, content):
        raise RuntimeError("no network")

    file = GrowingFile(path)
    with monkeypatch.context() as patch:
        patch.setattr(type(path), "write_bytes", fail)
        file.write(b"four\n")
        file.flush()
    assert "tried again later: no network" in caplog.text
    file.close()
    assert path.read_text() == "one\ntwo\nthree\nfour\n"


def test_a_file_of_a_bucket_is_fetched_once_by_all(bucket, monkeypatch):
    path = bucket / "shard"
    path.write_bytes(b"first")
    kind, opened = type(path), []
    open_path = kind.open

    def slowly(self, mode="r", **options):
        opened.append(mode)
        time.sleep(0.05)
        return open_path(self, mode, **options)

    monkeypatch.setattr(kind, "open", slowly)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        copies = list(pool.map(fetched, [path] * 4))
    assert opened == ["rb"]
    assert {copy.read_bytes() for copy in copies} == {b"first"}
    path.write_bytes(b"second")
    assert fetched(path).read_bytes() == b"second"
    assert copies[0].read_bytes() == b"first"


def test_a_copy_that_was_stopped_is_made_again(bucket, monkeypatch):
    path = bucket / "shard"
    path.write_bytes(b"whole")
    with monkeypatch.context() as patch:
        patch.setattr(type(path), "open", lambda self, mode: io.BytesIO(b"who"))
        with pytest.raises(OSError, match="some did not arrive"):
            fetched(path)
    copy = fetched(path)
    assert copy.read_bytes() == b"whole"
    # Cut off later.
    copy.write_bytes(b"who")
    assert fetched(path).read_bytes() == b"whole"


def test_copies_are_kept_on_this_machine(bucket, monkeypatch):
    (bucket / "shard").write_bytes(b"whole")
    monkeypatch.setenv("BIDI_CACHE", "gs://bucket/cache")
    with pytest.raises(PathError, match="BIDI_CACHE=gs://bucket/cache: name a directory of this"):
        fetched(bucket / "shard")


def test_a_directory_in_a_bucket_is_known_by_its_last_file(bucket, tmp_path, monkeypatch):
    write = fake_bucket._Upload.close
    written = []
    monkeypatch.setattr(
        fake_bucket._Upload,
        "close",
        lambda self: self.closed or written.append(self._path.name) or write(self),
    )
    write_directory(bucket / "model", {"b": b"1", "a": b"2", "c": b"3"}, last="a")
    assert written == ["b", "c", "a"]
    written.clear()
    for name in ("z/y", "b", "c"):
        (tmp_path / "local" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "local" / name).write_text(name)
    upload_directory(tmp_path / "local", bucket / "copy", last="b")
    assert sorted(written[:2]) == ["c", "y"]
    assert written[2:] == ["b"]
    assert (bucket / "copy" / "z" / "y").read_text() == "z/y"


def test_directories_are_named_from_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.chdir(tmp_path)
    assert relative("runs/b", f"{tmp_path}/runs/a") == "../b"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert relative("~/runs/b", f"{tmp_path}/runs/a") == "../b"
    assert relative("gs://bucket/runs/b", "gs://bucket/runs/a") == "../b"
    assert relative("gs://bucket/runs/b", "runs/a") == "gs://bucket/runs/b"
