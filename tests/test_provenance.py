"""The commit named is this program's."""

import shutil
import subprocess

from bidi import provenance


def git(directory, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    command = ["git", "-C", str(directory), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_is_the_checkouts_own(tmp_path, monkeypatch):
    checkout = tmp_path / "checkout"
    (checkout / "bidi").mkdir(parents=True)
    (checkout / "bidi" / "provenance.py").touch()
    git(checkout, "init")
    git(checkout, "add", ".")
    git(checkout, "commit", "-m", "one")
    commit = git(checkout, "rev-parse", "HEAD")
    monkeypatch.setattr(provenance, "__file__", str(checkout / "bidi" / "provenance.py"))
    assert provenance._commit() == commit
    (checkout / "bidi" / "provenance.py").write_text("changed")
    assert provenance._commit() == f"{commit}+changes"
    # A copy that is installed within a checkout of something else.
    installed = checkout / "site-packages" / "bidi"
    shutil.copytree(checkout / "bidi", installed)
    monkeypatch.setattr(provenance, "__file__", str(installed / "provenance.py"))
    assert provenance._commit() is None
