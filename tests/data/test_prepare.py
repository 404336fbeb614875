import dataclasses
import fcntl
import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
import textwrap

import pytest

from bidi.data import prepare as module
from bidi.data import records, splits
from bidi.data.config import DataConfig
from bidi.data.prepare import check_prepared, prepare
from bidi.data.prepared import Prepared
from bidi.data.sources import ParallelText
from bidi.data.tfds import Tfds
from bidi.data.vocabulary import VocabularyConfig
from bidi.errors import DataError
from bidi.tokens import UNK

CHAR = VocabularyConfig("char")
TEXTS = {
    "train": (["ab", "ba c", "", "abcabc", "a", "b"], ["x", "y x", "x", "y", "", "yyyyy"]),
    "validation": (["ab", "c"], ["xy", "x"]),
    "test": (["ca", "", "ddd"], ["yx", "x", "x"]),
}


@pytest.fixture
def config(tmp_path):
    """Parallel text with a letter that training lacks, empty lines, and pairs that are too long."""
    files = {}
    for split, sides in TEXTS.items():
        for side, lines in zip(["src", "tgt"], sides, strict=True):
            path = tmp_path / f"{split}.{side}"
            path.write_text("".join(f"{line}\n" for line in lines))
            files[split, side] = str(path)
    return DataConfig(
        directory=str(tmp_path / "deep" / "data"),
        source=ParallelText(
            {split: files[split, "src"] for split in TEXTS},
            {split: files[split, "tgt"] for split in TEXTS},
        ),
        source_vocabulary=CHAR,
        target_vocabulary=CHAR,
        max_source_length=4,
        max_target_length=4,
    )


def texts(prepared, split):
    """The pairs of a split, decoded."""
    pairs = prepared.pairs(split)
    return [
        (
            prepared.source_vocabulary.decode(pair["source"]),
            prepared.target_vocabulary.decode(pair["target"]),
        )
        for pair in pairs.__getitems__(range(len(pairs)))
    ]


def files(directory):
    """Every file under a directory with the hash of its content."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in pathlib.Path(directory).rglob("*")
        if path.is_file()
    }


def test_pairs_lack_what_is_empty_or_too_long_and_the_manifest_counts_it(config):
    manifest = prepare(config)
    prepared = Prepared.open(config.directory)
    assert prepared.manifest == manifest
    assert texts(prepared, "train") == [("ab", "x"), ("ba c", "y x")]
    train = manifest["splits"]["train"]
    assert (train["examples"], train["pairs"]) == (6, 2)
    assert train["dropped"] == {"empty": 2, "source_too_long": 1, "target_too_long": 1}
    assert train["source"]["tokens"] == 6
    assert (train["source"]["longest"], train["target"]["longest"]) == (4, 3)
    assert train["target"]["mean"] == 2.0
    assert manifest["splits"]["test"]["source"]["unknown"] == 1
    # sentencepiece makes one UNK of unknown characters in a row.
    assert list(prepared.pairs("test").__getitems__([1])[0]["source"]) == [UNK]


def test_long_sources_are_cut_and_counted_on_request(config):
    manifest = prepare(dataclasses.replace(config, truncate_source=True))
    train = manifest["splits"]["train"]
    assert train["dropped"] == {"empty": 2, "source_too_long": 0, "target_too_long": 1}
    assert (train["pairs"], train["truncated"]) == (3, 1)
    assert texts(Prepared.open(config.directory), "train")[2] == ("abca", "y")
    assert (train["source"]["longest"], train["source"]["tokens"]) == (4, 10)
    assert manifest["splits"]["test"]["truncated"] == 0


def test_examples_keep_everything(config):
    prepare(config)
    prepared = Prepared.open(config.directory)
    for split in ("validation", "test"):
        read = [(example.source, example.targets[0]) for example in prepared.examples(split)]
        assert read == list(zip(*TEXTS[split], strict=True))


def test_a_pair_for_every_reference(config):
    source = config.source
    target = {**source.target, "train": [source.target["train"], source.source["train"]]}
    source = ParallelText(source.source, target)
    manifest = prepare(dataclasses.replace(config, source=source))
    found = texts(Prepared.open(config.directory), "train")
    assert found == [
        ("ab", "x"),
        ("ab", "ab"),
        ("ba c", "y x"),
        ("ba c", "ba c"),
        ("a", "a"),
        ("b", "b"),
    ]
    assert manifest["splits"]["train"]["examples"] == 6


def test_vocabularies_are_one_a_side_or_joint(config):
    apart = prepare(config)["vocabularies"]
    assert apart["source"]["sha256"] != apart["target"]["sha256"]
    joint = dataclasses.replace(
        config, target_vocabulary=None, directory=f"{config.directory}-joint"
    )
    together = prepare(joint)["vocabularies"]
    assert together["source"] == together["target"]
    prepared = Prepared.open(joint.directory)
    assert UNK not in prepared.target_vocabulary.encode("ab xy")
    assert prepared.source_vocabulary.size == together["source"]["size"]


def test_the_same_input_gives_the_same_bytes(config):
    again = dataclasses.replace(config, directory=f"{config.directory}-again")
    assert prepare(config) == prepare(again)
    assert files(config.directory) == files(again.directory)


def test_again_does_nothing(config, monkeypatch):
    manifest = prepare(config)
    before = files(config.directory)
    monkeypatch.setattr(module, "_train_vocabularies", None)
    assert prepare(config) == manifest
    assert files(config.directory) == before
    assert [path.name for path in pathlib.Path(config.directory).parent.iterdir()] == ["data"]


def test_other_data_in_the_directory_are_named_and_kept(config):
    prepare(config)
    before = files(config.directory)
    changed = dataclasses.replace(
        config, max_target_length=5, source_vocabulary=VocabularyConfig("char", size=99)
    )
    with pytest.raises(
        DataError,
        match=r"length was 4 and is now 5; source_vocabulary\.size was 8000 and is now 99",
    ):
        prepare(changed)
    pathlib.Path(config.source.source["train"]).write_text("a\n" * 6)
    with pytest.raises(DataError, match=r"source\.files\.train was"):
        prepare(config)
    assert files(config.directory) == before


def test_a_directory_that_is_not_ours_is_kept(config):
    directory = pathlib.Path(config.directory)
    directory.mkdir(parents=True)
    (directory / "lock").write_text("precious")
    with pytest.raises(DataError, match="holds no prepared data"):
        prepare(config)
    assert (directory / "lock").read_text() == "precious"


def test_bad_input_leaves_nothing_behind(config):
    path = pathlib.Path(config.source.target["test"])
    path.write_bytes(b"a\n\xff\nb\n")
    with pytest.raises(DataError, match=r"test\.tgt, line 2"):
        prepare(config)
    assert list(pathlib.Path(config.directory).parent.iterdir()) == []


def test_killed_in_the_middle_then_run_again(config):
    script = f"""
        import os, signal
        from bidi.data import prepare as module
        from bidi.data.prepare import *
        from bidi.data.sources import *
        write = module.write_split
        def killed(config, split, *rest):
            if split == "test":
                os.kill(os.getpid(), signal.SIGKILL)
            return write(config, split, *rest)
        module.write_split = killed
        prepare({config!r})
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert run.returncode == -9
    parent = pathlib.Path(config.directory).parent
    (left,) = parent.iterdir()
    assert (left / "pairs" / "train-00000-of-00001.array_record").exists()
    prepare(config)
    assert [path.name for path in parent.iterdir()] == ["data"]
    undisturbed = dataclasses.replace(config, directory=f"{config.directory}-undisturbed")
    prepare(undisturbed)
    assert files(config.directory) == files(undisturbed.directory)


def test_a_link_is_followed_and_stays(config, tmp_path):
    real = tmp_path / "elsewhere"
    real.mkdir()
    link = pathlib.Path(config.directory)
    link.parent.mkdir()
    link.symlink_to(real)
    prepare(config)
    assert link.is_symlink()
    expected = texts(Prepared.open(str(real)), "train")
    (real / "pairs" / "train-00000-of-00001.array_record").write_bytes(b"")
    prepare(config)  # damaged
    assert link.is_symlink()
    assert texts(Prepared.open(config.directory), "train") == expected
    assert sorted(tmp_path.glob("**/*preparing*")) == []


def test_where_a_disk_is_mounted_is_refused_at_once(config, monkeypatch):
    pathlib.Path(config.directory).mkdir(parents=True)
    monkeypatch.setattr(pathlib.Path, "is_mount", lambda path: True)
    monkeypatch.setattr("bidi.data.vocabulary.train", None)
    with pytest.raises(DataError, match=r"Data\.directory = .*mounted there"):
        prepare(config)


def test_two_at_once_are_refused(config):
    temporary = pathlib.Path(config.directory).parent / ".data.preparing"
    temporary.mkdir(parents=True)
    with (temporary / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another process is preparing"):
            prepare(config)
    prepare(config)


def test_a_split_of_which_nothing_is_left(config, tmp_path):
    (tmp_path / "train.src").write_text("abc\n" * 5 + "\n")
    with pytest.raises(DataError, match=r"'train': none of 6 examples .*'source_too_long': 4"):
        prepare(dataclasses.replace(config, max_source_length=1))


def test_a_vocabulary_that_cannot_be_trained_is_named(config):
    target = VocabularyConfig("unigram", size=7)
    with pytest.raises(DataError, match=r"the target vocabulary: .*size=7"):
        prepare(dataclasses.replace(config, target_vocabulary=target))


def test_many_shards_hold_the_same_pairs(config, monkeypatch):
    one = prepare(config)
    monkeypatch.setattr(splits, "_PAIRS_PER_SHARD", 1)
    many = dataclasses.replace(config, directory=f"{config.directory}-many")
    assert prepare(many) == one
    shards = sorted(p.name for p in pathlib.Path(many.directory, "pairs").glob("train*"))
    assert shards == [f"train-0000{i}-of-00002.array_record" for i in range(2)]
    assert texts(Prepared.open(many.directory), "train") == texts(
        Prepared.open(config.directory), "train"
    )


def test_manifest_is_json_with_versions(config):
    prepare(config)
    manifest = json.loads(pathlib.Path(config.directory, "manifest.json").read_text())
    assert manifest["versions"].keys() == {"bidi", "sentencepiece"}
    assert manifest["fingerprint"]["max_source_length"] == 4


def test_a_config_is_compared_with_what_was_prepared(config):
    manifest = prepare(config)
    check_prepared(dataclasses.replace(config, directory="moved"), manifest)
    with pytest.raises(DataError, match=r"max_source_length was 4 and is now 5"):
        check_prepared(dataclasses.replace(config, max_source_length=5), manifest)
    joint = dataclasses.replace(config, target_vocabulary=None)
    with pytest.raises(DataError, match="target_vocabulary"):
        check_prepared(joint, manifest)


def test_what_a_config_says_of_its_source_is_compared_too(config):
    """And nothing read of it."""
    manifest = prepare(config)
    other = Tfds("cmudict/plain", "word", "pronunciation")
    with pytest.raises(DataError, match=r"source\.kind was 'ParallelText' and is now 'Tfds'"):
        check_prepared(dataclasses.replace(config, source=other), manifest)

    name = "cmudict/plain/1.0.0"
    of_tfds = {"kind": "Tfds", "name": name, "source_key": "word", "target_key": "pronunciation"}
    of_tfds |= {"splits": other.splits, "examples": {}, "bytes": {}}
    manifest["fingerprint"]["source"] = of_tfds
    for fits in ("cmudict", "cmudict/plain", "cmudict/plain:1.0.0"):
        source = dataclasses.replace(other, name=fits)
        check_prepared(dataclasses.replace(config, source=source), manifest)
    for change, says in (
        ({"name": "cmudict/stress"}, r"source\.name was 'cmudict/plain' and is now"),
        ({"target_key": "word"}, r"source\.target_key was 'pronunciation'"),
        ({"splits": {"train": "train[:10%]"}}, r"source\.splits\.train was 'train' and is now"),
    ):
        source = dataclasses.replace(other, **change)
        with pytest.raises(DataError, match=says):
            check_prepared(dataclasses.replace(config, source=source), manifest)
    with pytest.raises(DataError, match=r"source\.kind was 'Tfds' and is now 'ParallelText'"):
        check_prepared(config, manifest)


def test_cut_sources_are_other_data(config):
    cut = dataclasses.replace(config, truncate_source=True, directory=f"{config.directory}-cut")
    for one, other, says in ((config, cut, "None and is now True"), (cut, config, "True and is")):
        manifest = prepare(one)
        check_prepared(one, manifest)
        with pytest.raises(DataError, match=f"truncate_source was {says}"):
            check_prepared(other, manifest)


def test_data_of_before_there_was_truncation_are_the_same(config):
    manifest = prepare(config)
    assert "truncate_source" not in manifest["fingerprint"]


def test_what_is_scored_has_a_reference(config, monkeypatch):
    examples = ParallelText.examples

    def some_without(source, split):
        for number, example in enumerate(examples(source, split)):
            without = number == 1 and split in lacking
            yield dataclasses.replace(example, targets=()) if without else example

    monkeypatch.setattr(ParallelText, "examples", some_without)
    lacking = ("validation",)
    with pytest.raises(DataError, match=r"'validation', example 2: it has no reference .* is 'c'"):
        prepare(config)
    lacking = ("train",)  # where it is dropped
    assert prepare(config)["splits"]["train"]["dropped"]["empty"] == 3


def test_references_that_cannot_be_written_are_said(config, tmp_path, caplog):
    prepare(config)
    assert "can never be written" not in caplog.text
    (tmp_path / "test.tgt").write_text("yx\n½\ny  x\n")
    prepare(dataclasses.replace(config, directory=str(tmp_path / "other")))
    assert "test: 1 of 3 references can never be written" in caplog.text
    assert "'½' would be '" in caplog.text


def test_what_is_mended_takes_nothing_else_with_it(config):
    prepare(config)
    directory = pathlib.Path(config.directory)
    (directory / "notes").write_text("mine")
    prepare(config)  # nothing is damaged
    shard = next((directory / "pairs").glob("train-*"))
    shard.write_bytes(shard.read_bytes()[:200])
    with pytest.raises(DataError, match=r"but holds more than prepared data: notes\. Move"):
        prepare(config)
    assert (directory / "notes").read_text() == "mine"
    (directory / "notes").unlink()
    prepare(config)
    assert Prepared.open(config.directory).pairs("train")


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        ("pairs/train-*", lambda path: path.unlink(), "there are no pairs of train"),
        ("examples/test.*", lambda path: path.unlink(), "there are no examples of test"),
        (
            "examples/test.*",
            lambda path: shutil.copy(next(path.parent.glob("validation.*")), path),
            "2 of 3 examples of test are there",
        ),
        (
            "examples/test.*",
            lambda path: path.write_bytes(path.read_bytes().replace(b"ddd", b"dde")),
            "is damaged, cut off perhaps",
        ),
    ],
    ids=["no pairs", "no examples", "too few", "the last record"],
)
def test_data_that_lack_something_are_made_again(config, monkeypatch, caplog, name, damage, says):
    monkeypatch.setattr(records, "_CHUNK", 2)
    prepare(config)
    expected = files(config.directory)
    damage(next(pathlib.Path(config.directory).glob(name)))
    prepare(config)
    assert says in caplog.text
    assert files(config.directory) == expected


@pytest.mark.parametrize("damage", ["cut off", "another", "gone"])
def test_a_damaged_vocabulary_is_found_and_mended(config, damage):
    prepare(config)
    path = pathlib.Path(config.directory) / "target.model"
    whole = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(whole[:50] if damage == "cut off" else whole + b"\0")
    with pytest.raises(DataError, match=r"target\.model is missing or damaged: run python -m"):
        Prepared.open(config.directory).target_vocabulary  # noqa: B018
    prepare(config)
    assert path.read_bytes() == whole


def test_a_damaged_manifest_is_named(config):
    prepare(config)
    path = pathlib.Path(config.directory) / "manifest.json"
    path.write_text(path.read_text()[:40])
    for use in (lambda: prepare(config), lambda: Prepared.open(config.directory)):
        with pytest.raises(DataError, match=r"manifest\.json is damaged .*: delete the prepared"):
            use()
