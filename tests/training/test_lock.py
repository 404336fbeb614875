"""Where a file system has no locks; with them: tests/test_faults.py."""

import errno
import fcntl
import os
import socket

import pytest
from etils import epath

from bidi.errors import PathError, UserError
from bidi.files import fetched, path_of
from bidi.training.lock import locked
from tests import fake_bucket


def without_locks(monkeypatch, number):
    def flock(*_):
        raise OSError(number, "no")

    monkeypatch.setattr(fcntl, "flock", flock)


def test_a_second_run_is_kept_out(tmp_path):
    workdir = epath.Path(tmp_path / "run")
    with (
        locked(workdir),
        pytest.raises(UserError, match="another run is at work"),
        locked(workdir),
    ):
        pass
    with locked(workdir):
        pass


def test_it_names_its_holder_and_not_what_was_killed(tmp_path):
    workdir = epath.Path(tmp_path / "run")
    workdir.mkdir()
    (workdir / "lock").write_text("process 12345678901234567890 on another")
    with locked(workdir):
        assert (workdir / "lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}"
    assert not (workdir / "lock").read_text()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_without_locks_it_is_said_and_goes_on(number, tmp_path, monkeypatch, caplog):
    without_locks(monkeypatch, number)
    workdir = epath.Path(tmp_path / "run")
    with locked(workdir):
        assert f"{workdir} has no locks: nothing keeps a second run out" in caplog.text


def test_other_errors_are_errors(tmp_path, monkeypatch):
    without_locks(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="no"), locked(epath.Path(tmp_path / "run")):
        pass


def test_copies_are_not_kept_where_two_could_write_one(tmp_path, monkeypatch):
    fake_bucket.install(monkeypatch, tmp_path / "buckets")
    monkeypatch.setenv("BIDI_CACHE", str(tmp_path / "cache"))
    path = path_of("gs://bucket/text")
    path.write_text("text")
    without_locks(monkeypatch, errno.ENOLCK)
    with pytest.raises(PathError, match=r"cache is on a file system without locks: .*BIDI_CACHE"):
        fetched(path)
