import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bidi.data import debian_titles
from bidi.data.apt_lists import Package
from bidi.data.debian_titles import clean, side, split_packages
from bidi.data.sources import Example
from bidi.data.tfds import Tfds


def words(seed, count):
    """Some words, others for each seed."""
    digest = hashlib.sha256(str(seed).encode()).hexdigest() * 4
    letters = digest.translate(str.maketrans("0123456789", "ghijklmnop"))
    return " ".join(letters[4 * i : 4 * i + 4] for i in range(count))


def package(name, source=None, synopsis=None, description=None):
    return Package(
        name,
        source or name,
        synopsis or f"synopsis {words(name, 4)}",
        description or f"Text {words(name, 30)}.",
    )


def kept(*packages):
    return [one.name for one in clean(packages)]


LONG = words("long", 30)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "librust-cat-dev"),
        ("name", "cat-dbg"),
        ("name", "cat-dbgsym"),
        ("synopsis", "s" * 11),
        ("synopsis", "s" * 121),
        ("synopsis", "cat (transitional package)"),
        ("description", "d" * 99),
        ("description", "d" * 2001),
        ("description", f"This is a Dummy package. {LONG}"),
        ("description", f"Meta-package for {LONG}"),
        ("description", f"SYNOPSIS {words('cat', 4)}: {LONG}"),
    ],
)
def test_what_is_left_out(field, value):
    good = package("cat")
    assert kept(good) == ["cat"]
    assert kept(good._replace(**{field: value})) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "librustic"),
        ("synopsis", "s" * 12),
        ("synopsis", "s" * 120),
        ("description", "d" * 100),
        ("description", "d" * 2000),
        ("description", f"This is synopsis {words('cat', 4)}: {LONG}"),
    ],
)
def test_what_is_just_kept(field, value):
    assert len(kept(package("cat")._replace(**{field: value}))) == 1


def test_three_of_a_source_by_length_of_name():
    names = ["cat-documentation", "cat-data", "libcat1", "cat", "libcat-dev"]
    assert kept(*(package(name, source="cat") for name in names)) == ["cat", "libcat1", "cat-data"]
    # A package that is left out does not count.
    dropped = package("cat", source="cat", description="short")
    names[3:4] = []
    assert kept(dropped, *(package(name, source="cat") for name in names)) == [
        "libcat1", "cat-data", "libcat-dev"
    ]  # fmt: skip


def test_repeated_synopses_and_beginnings():
    one = package("a", synopsis="the GCC 11 compiler", description=f"{LONG} {LONG}")
    for other, count in (
        (package("b", synopsis="the gcc-12 Compiler"), 1),
        (package("b", synopsis="the gcc-12 linker"), 2),
        (package("b", description=f"{LONG.upper()} 12 {LONG} and more"), 1),
        (package("b", description=f"another {LONG}"), 2),
    ):
        assert kept(one, other) == kept(other, one) == ["a", "b"][:count]


@given(st.sets(st.sampled_from("abcdefgh")), st.randoms(use_true_random=False))
def test_the_order_of_the_lists_does_not_matter(names, random):
    packages = [package(f"{n}{i}", source=n) for n in names for i in range(4)]
    shuffled = random.sample(packages, len(packages))
    assert clean(shuffled) == clean(packages)


NAMES = [f"p{i}" for i in range(60)]


def test_sides_are_a_partition_by_hash():
    sides = [side(f"family{i}") for i in range(5000)]
    assert sides.count("test") == pytest.approx(5000 / 17, rel=0.2)
    assert sides.count("validation") == pytest.approx(5000 / 17, rel=0.2)
    assert {side(name) for name in NAMES} == {"train", "validation", "test"}
    packages = [package(name) for name in NAMES]
    splits = split_packages(packages)
    assert splits == {split: [p for p in packages if side(p.name) == split] for split in splits}
    # Published splits stay what they were.
    assert [side(name) for name in ("bash", "vim", "abook")] == ["train", "validation", "test"]


def test_families_are_not_divided_and_large_ones_are_for_training(monkeypatch):
    first = min(name for name in NAMES if side(name) == "test")
    last = max(name for name in NAMES if side(name) == "train")
    assert first < last
    texts = [f"{LONG} {numeral}" for numeral in ("one", "two")]
    packages = [
        package(first, description=texts[0]),
        package(last, description=texts[1]),
        package("other", source=last),
    ]
    assert split_packages(packages)["test"] == packages
    monkeypatch.setattr(debian_titles, "_LARGEST_HELD_OUT", 2)
    assert split_packages(packages)["train"] == packages


@pytest.fixture
def lists(tmp_path, monkeypatch):
    """Lists of apt with a package of every name; names the folder in the environment."""
    folder = tmp_path / "lists"
    folder.mkdir()
    packages = [package(name) for name in NAMES]
    (folder / "deb_Packages").write_text("\n".join(f"Package: {p.name}\n" for p in packages))
    (folder / "deb_Translation-en").write_text(
        "\n".join(
            f"Package: {p.name}\nDescription-en: {p.synopsis}\n {p.description}\n" for p in packages
        )
    )
    monkeypatch.setenv("BIDI_APT_LISTS", str(folder))
    return packages


def test_the_builder_as_a_source(lists, tmp_path, monkeypatch):
    source = Tfds("debian_titles", "description", "synopsis", data_dir=str(tmp_path / "tfds"))
    found = {split: set(source.examples(split)) for split in ("train", "validation", "test")}
    assert found == {
        split: {Example(p.description, (p.synopsis,)) for p in packages}
        for split, packages in split_packages(lists).items()
    }
    # Once made, the lists are not needed.
    monkeypatch.setenv("BIDI_APT_LISTS", str(tmp_path / "none"))
    again = Tfds("debian_titles", "description", "synopsis", data_dir=str(tmp_path / "tfds"))
    assert set(again.examples("test")) == found["test"]


def test_no_lists(tmp_path, monkeypatch):
    monkeypatch.setenv("BIDI_APT_LISTS", str(tmp_path))
    source = Tfds("debian_titles", "description", "synopsis", data_dir=str(tmp_path / "tfds"))
    with pytest.raises(FileNotFoundError, match="apt-get update"):
        list(source.examples("train"))
