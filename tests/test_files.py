"""Files under a full disk, and paths that are none of this machine's."""

import pathlib

import pytest

from bidi.data.sources import expand
from bidi.files import BucketError, GrowingFile, local

FULL = pathlib.Path("/dev/full")


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


def test_a_bucket_is_refused_and_no_directory_of_its_name_is_made():
    for name in (local, expand):
        with pytest.raises(BucketError, match="'gs://bucket/run' is in a bucket"):
            name("gs://bucket/run")
    assert local("runs/a") == pathlib.Path("runs/a")
