import bz2
import gzip
import lzma
import struct

import pytest

from bidi.data import apt_lists
from bidi.data.apt_lists import Package
from bidi.errors import DataError

PACKAGES = """Package: cat
Version: 1.0
Description: shows files
Tag: role::program,
 works-with::file

Package: cat-doc
Source: cat (1.0)
Version: 1.0+b1

Package: dog
Source: animals
"""
DESCRIPTIONS = """Package: cat
Description-md5: 0123
Description-en: shows files: all
 Shows files,  one
 after the other.
 .
  * Second.\u2028Paragraph

Package: cat-doc
Description-md5: 4567
Description-en: documentation of cat
 How to use it.

Package: cat-doc
Description-en: another text of the same package
 Of another version.

Package: mouse
Description-en: of another architecture
 Nobody knows its source.
"""
TEXT = "Shows files, one after the other. * Second. Paragraph"
EXPECTED = [
    Package("cat", "cat", "shows files: all", TEXT),
    Package("cat-doc", "cat", "documentation of cat", "How to use it."),
]


def lz4(data):
    """A frame with one block that is not compressed, by the format's description."""
    header = bytes.fromhex("04224d18604082")
    return header + struct.pack("<I", len(data) | 1 << 31) + data + bytes(4)


PACKERS = {
    "": bytes,
    ".bz2": bz2.compress,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".lz4": lz4,
}


def write(directory, name, text, suffix=""):
    (directory / f"{name}{suffix}").write_bytes(PACKERS[suffix](text.encode()))


@pytest.mark.parametrize("suffix", PACKERS)
def test_descriptions_and_sources_are_joined(tmp_path, suffix):
    if suffix == ".lz4" and not apt_lists._APT_HELPER.is_file():
        pytest.skip("there is no apt here to unpack its lists")
    write(tmp_path, "deb_main_binary-amd64_Packages", PACKAGES, suffix)
    write(tmp_path, "deb_main_i18n_Translation-en", DESCRIPTIONS, suffix)
    # Neither is a list in English.
    write(tmp_path, "deb_main_i18n_Translation-de", "Package: Hund\n")
    write(tmp_path, "deb_InRelease", "-----BEGIN PGP SIGNED MESSAGE-----\n")
    assert apt_lists.read(tmp_path) == EXPECTED


def test_of_several_lists_the_first_counts(tmp_path):
    write(tmp_path, "b_Packages", PACKAGES)
    write(tmp_path, "b_Translation-en", DESCRIPTIONS)
    write(tmp_path, "a_Packages", "Package: cat\nSource: newer")
    write(tmp_path, "a_Translation-en", "Package: cat\nDescription-en: new\n Text.\n")
    assert apt_lists.read(tmp_path) == [Package("cat", "newer", "new", "Text."), EXPECTED[1]]


@pytest.mark.parametrize("kind", ["Translation-en", "Packages"])
def test_what_is_missing_is_named_with_the_command(tmp_path, kind):
    for there, text in (("Packages", PACKAGES), ("Translation-en", DESCRIPTIONS)):
        if there != kind:
            write(tmp_path, f"deb_{there}", text)
    with pytest.raises(FileNotFoundError, match=rf"no lists \*_{kind}.*apt-get update -o Acq"):
        apt_lists.read(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/none has no lists"):
        apt_lists.read(tmp_path / "none")


def test_what_is_no_list_is_named(tmp_path):
    write(tmp_path, "deb_Packages", "<html>\n")
    with pytest.raises(DataError, match="deb_Packages: '<html>' is no line"):
        apt_lists.read(tmp_path)


@pytest.mark.parametrize("suffix", [".bz2", ".gz", ".xz"])
@pytest.mark.parametrize("damage", ["cut off", "another format"])
def test_a_damaged_list_is_named(tmp_path, suffix, damage):
    packed = PACKERS[suffix](PACKAGES.encode())
    content = packed[: len(packed) // 2] if damage == "cut off" else b"rubbish" * 30
    (tmp_path / f"deb_Packages{suffix}").write_bytes(content)
    with pytest.raises(DataError, match=rf"deb_Packages\{suffix} cannot be unpacked: \S"):
        apt_lists.read(tmp_path)


def test_lists_that_cannot_be_unpacked(tmp_path, monkeypatch):
    (tmp_path / "deb_Packages.lz4").write_bytes(b"\x04\x22\x4d\x18 and rubbish")
    if apt_lists._APT_HELPER.is_file():
        with pytest.raises(DataError, match=r"deb_Packages\.lz4 cannot be unpacked: \S"):
            apt_lists.read(tmp_path)
    monkeypatch.setattr(apt_lists, "_APT_HELPER", tmp_path / "none")
    with pytest.raises(DataError, match=r"deb_Packages\.lz4: only apt's own"):
        apt_lists.read(tmp_path)
