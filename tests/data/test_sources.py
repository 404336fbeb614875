import gzip
import json

import numpy as np
import pytest
import tensorflow_datasets as tfds

from bidi.data import tfds as tfds_source
from bidi.data.sources import Example, ParallelText
from bidi.data.tfds import Tfds
from bidi.errors import DataError, PathError


def write(path, text):
    data = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


@pytest.fixture
def parallel(tmp_path):
    """Makes a ParallelText with one split, train, of the given file contents."""

    def make(source, *targets, suffix=""):
        paths = [
            write(tmp_path / f"{side}{suffix}", text)
            for side, text in zip(["src", "ref0", "ref1"], [source, *targets], strict=False)
        ]
        target = paths[1] if len(paths) == 2 else paths[1:]
        return ParallelText({"train": paths[0]}, {"train": target})

    return make


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_lines_are_paired_and_kept_as_they_are(parallel, suffix):
    text = parallel("a b\n\nü\u2028x\n", "1\r\n 2 \n3", suffix=suffix)
    assert list(text.examples("train")) == [
        Example("a b", ("1",)),
        Example("", (" 2 ",)),
        Example("ü\u2028x", ("3",)),
    ]


def test_a_byte_order_mark_is_no_text(parallel):
    text = parallel("\ufeffa\n\ufeffb\n", "\ufeff1\n2\n")
    assert list(text.examples("train")) == [Example("a", ("1",)), Example("\ufeffb", ("2",))]


def test_several_references(parallel):
    text = parallel("a\nb\n", "1\n2\n", "I\nII\n")
    assert [e.targets for e in text.examples("train")] == [("1", "I"), ("2", "II")]


def test_a_blank_line_is_no_further_reference(parallel):
    text = parallel("a\nb\nc\n", "1\n \n\n", "\nII\n\t\n")
    assert [e.targets for e in text.examples("train")] == [("1",), ("II",), ("",)]


def test_unequal_line_counts_name_every_file_and_count(parallel):
    examples = parallel("a\nb\n", "1\n2\n3\n", "I\nII\n").examples("train")
    with pytest.raises(DataError, match=r"src: 2, .*ref0: 3, .*ref1: 2"):
        list(examples)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_bad_utf8_names_file_and_line(parallel, suffix):
    examples = parallel("a\nb\nc\n", b"1\n\xff\n3\n", suffix=suffix).examples("train")
    with pytest.raises(DataError, match=rf"ref0{suffix}, line 2: not UTF-8"):
        list(examples)


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"plain\n"])
def test_bad_gzip_names_the_file(parallel, tmp_path, damage):
    text = parallel("a\n" * 1000, "1\n" * 1000, suffix=".gz")
    path = tmp_path / "src.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"src\.gz.*not sound gzip"):
        list(text.examples("train"))


def test_empty_files_are_an_error(parallel):
    with pytest.raises(DataError, match="src is empty: split 'train' has no example"):
        list(parallel("", "").examples("train"))


def test_a_missing_file_is_named(tmp_path):
    text = ParallelText({"train": f"{tmp_path}/no"}, {"train": f"{tmp_path}/nor"})
    with pytest.raises(FileNotFoundError, match=r"/no .split 'train'"):
        list(text.examples("train"))


def test_variables_are_expanded(parallel, tmp_path, monkeypatch):
    parallel("a\n", "1\n")
    monkeypatch.setenv("CORPUS", str(tmp_path))
    text = ParallelText({"train": "$CORPUS/src"}, {"train": "${CORPUS}/ref0"})
    assert list(text.examples("train")) == [Example("a", ("1",))]
    monkeypatch.delenv("CORPUS")
    with pytest.raises(PathError, match="variable CORPUS is not set"):
        list(text.examples("train"))


def test_a_stray_dollar_is_explained():
    with pytest.raises(PathError, match=r"write \$NAME"):
        list(ParallelText({"train": "a$"}, {"train": "b"}).examples("train"))


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (
            {"train": "a", "valid": "b"},
            {"train": "a"},
            "source: 'valid' .*'validation'",
        ),
        ({"train": "a"}, {"train": "a", "dev": "b"}, "target: 'dev' .*test, train, validation"),
        ({"test": "a"}, {"test": "a"}, "no split 'train'"),
        ({"train": "a", "test": "a"}, {"train": "a"}, "both sides need the same"),
    ],
)
def test_bad_split_names(source, target, message):
    with pytest.raises(DataError, match=message):
        ParallelText(source, target).splits  # noqa: B018


def test_no_target_file(parallel, tmp_path):
    parallel("a\n", "1\n")
    with pytest.raises(DataError, match=r"target\['train'\] names no file"):
        list(ParallelText({"train": f"{tmp_path}/src"}, {"train": []}).examples("train"))


def test_fingerprint_follows_the_content_not_the_place(parallel, tmp_path):
    here = parallel("a\n", "1\n")
    before = here.fingerprint()
    (tmp_path / "src").rename(tmp_path / "moved")
    moved = ParallelText({"train": f"{tmp_path}/moved"}, here.target)
    assert moved.fingerprint() == before
    write(tmp_path / "moved", "b\n")
    assert moved.fingerprint() != before
    assert json.loads(json.dumps(before)) == before


class ToyTexts(tfds.core.GeneratorBasedBuilder):
    """One nested text, several texts and a number."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "in": {"text": tfds.features.Text()},
            "out": tfds.features.Sequence(tfds.features.Text()),
            "label": tfds.features.Scalar(np.int32),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(5), "extra": self._generate_examples(1)}

    def _generate_examples(self, count):
        for i in range(count):
            yield i, {"in": {"text": f"é{i}"}, "out": [f"{i}{j}" for j in range(i)], "label": i}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("tfds"))


@pytest.fixture
def toy(data_dir):
    def make(name="toy_texts", source="in/text", target="out", **splits):
        return Tfds(name, source, target, splits or {"train": "train"}, data_dir)

    return make


def test_tfds_texts_nested_and_repeated(toy, monkeypatch):
    monkeypatch.setattr(tfds_source, "_CHUNK", 2)
    examples = sorted(toy().examples("train"), key=lambda example: example.source)
    assert examples == [Example(f"é{i}", tuple(f"{i}{j}" for j in range(i))) for i in range(5)]


def test_tfds_split_may_be_a_slice(toy):
    source = toy(train="train[:60%]", test="train[60%:]")
    assert source.splits == {"train": "train[:60%]", "test": "train[60%:]"}
    texts = {split: {e.source for e in source.examples(split)} for split in source.splits}
    assert (len(texts["train"]), len(texts["test"])) == (3, 2)
    assert not texts["train"] & texts["test"]


def test_tfds_fingerprint(toy):
    assert toy().fingerprint() == toy().fingerprint()
    assert toy().fingerprint() != toy(target="in/text").fingerprint()
    assert toy().fingerprint()["name"] == "toy_texts/1.0.0"
    assert json.loads(json.dumps(toy().fingerprint())) == toy().fingerprint()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "toy_text"}, "Tfds.name: 'toy_text' is no dataset .*Did you mean 'toy_texts'"),
        ({"name": "cmudict/plane"}, "'plane' is no config of cmudict.*Did you mean 'plain'"),
        ({"name": "toy_texts:9.9.9"}, "Tfds.name: .*9.9.9"),
        ({"source": "in/txt"}, "source_key: 'in/txt' .*Did you mean 'in/text'"),
        ({"target": "in"}, "target_key: 'in' is no feature"),
        (
            {"train": "trian"},
            "'trian' is no split of toy_texts, which has train, extra",
        ),
        ({"train": "train[:0]"}, r"'train\[:0\]' of toy_texts has no example"),
        ({"train": "train[x]"}, r"'train\[x\]' is no slice"),
        ({"source": "out"}, "'out' must be one text"),
        ({"target": "label"}, "example 0: 'label' is .* and not text"),
        ({"dev": "train"}, "Tfds.splits: 'dev' is no split"),
    ],
)
def test_tfds_errors_name_the_choices(toy, arguments, message):
    with pytest.raises(DataError, match=message):
        list(toy(**arguments).examples("train"))


def test_tfds_data_that_need_tensorflow(tmp_path):
    source = Tfds("toy_texts", "in/text", "out", {"train": "train"}, str(tmp_path))
    list(source.examples("train"))
    info = tmp_path / "toy_texts" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    again = Tfds(source.name, "in/text", "out", source.splits, str(tmp_path))
    with pytest.raises(DataError, match="without TensorFlow"):
        list(again.examples("train"))
