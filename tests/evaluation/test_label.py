"""Pseudo outputs: who wrote what, where it stands, and what a stopped run leaves."""

import copy
import dataclasses
import json
import re
import shutil
import threading

import numpy as np
import pytest

from bidi import distributed
from bidi.data import pseudo
from bidi.data.folds import fold_of
from bidi.data.partner import Partner
from bidi.data.prepared import Prepared
from bidi.data.pseudo import PseudoOutputs, pairs_beside
from bidi.errors import DataError, UserError
from bidi.evaluation import label as labelling
from bidi.evaluation.found import Found, Hypothesis
from bidi.evaluation.label import label, load_labellers
from tests.trained_run import STEPS

PER_SHARD = 48
SHARDS = [f"train-0000{shard}-of-00005" for shard in range(5)] + ["validation-00000-of-00001"]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(pseudo, "PAIRS_PER_SHARD", PER_SHARD)


@pytest.fixture
def prepared(trained):
    return Prepared.open(str(trained.data))


@pytest.fixture
def load(trained, prepared, restore_once):
    def call(l2r=trained.both, r2l=trained.both, checkpoint="best"):
        return load_labellers({"l2r": l2r, "r2l": r2l}, checkpoint, prepared)

    return call


@pytest.fixture
def folds(load):
    """Of the first fold an early checkpoint, of the second a late one."""
    (early,), (late,) = load(checkpoint=str(STEPS // 2)), load()
    generator = copy.copy(late.generator)  # shares what is compiled
    generator._searching = copy.copy(generator._searching)
    generator._searching._params = early.generator.params
    vars(generator._searching).pop("_variables", None)  # made of the parameters
    return [(dataclasses.replace(early, generator=generator),), (late,)]


def run(directory, prepared, labellers, stop=None, **processes):
    stop = stop or threading.Event()
    return label(directory, prepared, labellers, stop.is_set, **processes)


def files(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture(scope="session")
def finished():
    """What an undisturbed run with two folds writes, once it is made."""
    return {}


@pytest.fixture
def undisturbed(finished, prepared, folds, tmp_path_factory):
    if not finished:
        finished["directory"] = tmp_path_factory.mktemp("labels") / "undisturbed"
        assert run(finished["directory"], prepared, folds)
    return finished["directory"]


def test_every_pair_has_what_the_labeller_of_its_fold_writes(
    undisturbed, trained, prepared, folds, load
):
    assert set(files(undisturbed)) == {f"{name}.array_record" for name in SHARDS} | {
        "manifest.json"
    }
    partner = Partner("pseudo", str(undisturbed))
    differing = 0
    for split in ("train", "validation"):
        # From the text, and all at once: the order of the pairs is the order of the lines.
        texts = (trained.data.parent / f"{split}.in").read_text().splitlines()
        written = [labeller.generator.search(texts, labeller.search) for (labeller,) in folds]
        pairs = pairs_beside(partner, prepared, split)
        assert len(pairs) == len(texts)
        plain = prepared.pairs(split).__getitems__(range(len(texts)))
        for index, pair in enumerate(pairs.__getitems__(range(len(pairs)))):
            for side in ("source", "target"):
                np.testing.assert_array_equal(pair[side], plain[index][side])
            fold = fold_of(pair["source"], 2)
            for direction in ("l2r", "r2l"):
                by_fold = [found[index].n_best[direction][0].tokens for found in written]
                assert tuple(pair[direction]) == by_fold[fold]
                differing += by_fold[0] != by_fold[1]
    assert differing > 20  # else this test would prove little


def test_the_manifest_says_who_wrote_and_how_well(undisturbed, trained, prepared):
    manifest = json.loads((undisturbed / "manifest.json").read_text())
    assert [[one["step"] for one in fold] for fold in manifest["labellers_of_folds"]] == [
        [STEPS // 2],
        [STEPS],
    ]
    (first,), (second,) = manifest["labellers_of_folds"]
    assert first["checksum"] != second["checksum"]
    assert first["directions"] == ["l2r", "r2l"]
    assert first["search"]["beam_size"] == 4
    assert manifest["workdirs"] == [[str(trained.both)]] * 2
    assert manifest["fingerprint"] == prepared.manifest["fingerprint"]

    pairs = pairs_beside(Partner("pseudo", str(undisturbed)), prepared, "train")
    taken = pairs.__getitems__(range(len(pairs)))
    for direction in ("l2r", "r2l"):
        entry = manifest["splits"]["train"][direction]
        lengths = [len(pair[direction]) for pair in taken]
        equal = [list(pair[direction]) == list(pair["target"]) for pair in taken]
        assert entry["equal_to_gold"] == round(np.mean(equal), 4)
        assert 0.1 < entry["equal_to_gold"] < 1
        assert entry["mean"] == round(np.mean(lengths), 3)
        assert (entry["longest"], entry["empty"]) == (max(lengths), lengths.count(0))
    assert manifest["splits"]["validation"]["pairs"] == 16
    hashes = PseudoOutputs.open(str(undisturbed), prepared).identity
    assert hashes.keys() == {"train", "validation"}
    assert len(set(hashes.values())) == 2


def test_a_model_for_each_direction(undisturbed, folds, load, trained, prepared, tmp_path):
    """The early one for L2R, the late one for R2L: each direction is as the fold's model wrote."""
    ((early,), _), other = folds, shutil.copytree(trained.both, tmp_path / "other")
    l2r, r2l = load(trained.both, other)
    assert (l2r.directions, r2l.directions) == (("l2r",), ("r2l",))
    assert (l2r.workdir, r2l.workdir) == (str(trained.both), str(other))
    l2r = dataclasses.replace(l2r, generator=early.generator)
    assert run(tmp_path / "labels", prepared, [(l2r, r2l)])
    ours, theirs = (
        pairs_beside(Partner("pseudo", str(directory)), prepared, "train").__getitems__(range(200))
        for directory in (tmp_path / "labels", undisturbed)
    )
    for our, their in zip(ours, theirs, strict=True):
        same = ("l2r", "r2l")[fold_of(our["source"], 2)]
        np.testing.assert_array_equal(our[same], their[same])


def test_asked_to_stop_it_goes_on_later(undisturbed, prepared, folds, tmp_path, monkeypatch):
    stop, write_shard = threading.Event(), labelling._write_shard
    written = []

    def write_and_ask(path, records):
        write_shard(path, records)
        written.append(path.name)
        if len(written) == 2:
            stop.set()

    monkeypatch.setattr(labelling, "_write_shard", write_and_ask)
    directory = tmp_path / "labels"
    assert not run(directory, prepared, folds, stop)
    assert len(written) == 2
    with pytest.raises(DataError, match="is unfinished: run the command again"):
        PseudoOutputs.open(str(directory), prepared)
    assert run(directory, prepared, folds)
    assert sorted(written) == [f"{name}.array_record" for name in SHARDS]  # none twice
    assert files(directory) == files(undisturbed)


def test_processes_divide_the_shards(undisturbed, prepared, folds, tmp_path, monkeypatch):
    directory, written = tmp_path / "labels", []
    write_shard = labelling._write_shard
    monkeypatch.setattr(
        labelling, "_write_shard", lambda *args: (written.append(args[0].stem), write_shard(*args))
    )
    for index in (1, 2, 0):  # the first process completes the manifest
        assert run(directory, prepared, folds, process_index=index, process_count=3)
    assert written == [SHARDS[i] for i in (1, 4, 2, 5, 0, 3)]
    assert files(directory) == files(undisturbed)
    # Without the others it does not take what is there for all.
    with pytest.raises(DataError, match="lacks some of the outputs for the 200 pairs of train"):
        run(tmp_path / "alone", prepared, folds, process_index=0, process_count=3)


def test_what_is_finished_is_not_written_again(undisturbed, prepared, folds, monkeypatch, caplog):
    monkeypatch.setattr(labelling, "_write_shard", None)
    before = files(undisturbed)
    with caplog.at_level("INFO", "bidi"):
        assert run(undisturbed, prepared, folds)
    assert "is labelled already" in caplog.text
    assert files(undisturbed) == before


def test_labels_of_another_making_are_refused(undisturbed, prepared, folds, monkeypatch):
    before = files(undisturbed)
    for labellers in (folds[:1], folds[::-1]):
        with pytest.raises(DataError, match=f"{undisturbed} holds .* differs in labellers_of_fol"):
            run(undisturbed, prepared, labellers)
    monkeypatch.setattr(pseudo, "PAIRS_PER_SHARD", 50)
    remedy = "delete manifest.json and the *.array_record files in it (labellers/ may stay)"
    with pytest.raises(
        DataError, match=rf"differs in pairs_per_shard\. Choose another.* or {re.escape(remedy)}$"
    ):
        run(undisturbed, prepared, folds)
    assert files(undisturbed) == before


def test_processes_compare_who_labels(prepared, folds, tmp_path, monkeypatch):
    stop, compared = threading.Event(), {}
    stop.set()
    monkeypatch.setattr(distributed, "check_alike", lambda values: compared.update(values))
    its = []
    for place, labellers in enumerate((folds, folds, folds[::-1])):
        run(tmp_path / str(place), prepared, labellers, stop)
        its.append(compared.pop("labellers"))
    assert its[0] == its[1] != its[2]


def test_shards_without_a_manifest_are_not_taken_for_new_ones(
    undisturbed, prepared, folds, tmp_path
):
    """They may be anyone's: of prepared data, whose names are the same, too."""
    directory = shutil.copytree(undisturbed, tmp_path / "labels")
    (directory / "manifest.json").unlink()
    before = files(directory)
    with pytest.raises(DataError, match=f"holds {SHARDS[0]}.* and no manifest.json"):
        run(directory, prepared, folds)
    assert files(directory) == before


def test_sources_that_are_cut_are_counted(prepared, folds, tmp_path, caplog):
    """Once each, though a model for each direction reads them."""

    class Cutting:
        def search_tokens(self, sources, config, tally):
            tally.truncated += sum(len(source) > 6 for source in sources)
            nothing = tuple(Hypothesis((), way, 0.0, 0.0, True) for way in ("l2r", "r2l"))
            return [Found({one.direction: (one,) for one in nothing}, None) for _ in sources]

    ((both,), _) = folds
    for_each = [
        dataclasses.replace(both, generator=Cutting(), directions=(way,)) for way in ("l2r", "r2l")
    ]
    assert run(tmp_path, prepared, [tuple(for_each)] * 2)
    splits = [prepared.pairs(split) for split in pseudo.SPLITS]
    long = sum(len(p["source"]) > 6 for its in splits for p in its.__getitems__(range(len(its))))
    assert 0 < long < 216
    cut = [record.message for record in caplog.records if "cut" in record.message]
    assert cut == [f"{long} sources were longer than their labeller reads, and cut"]


def test_models_that_cannot_label_these_data(load, trained, tmp_path):
    with pytest.raises(UserError, match=f"{trained.r2l} does not write l2r"):
        load(trained.r2l, trained.both)
    other = shutil.copytree(trained.both, tmp_path / "other")
    data = json.loads((other / "data.json").read_text())
    data["vocabularies"]["source"]["sha256"] = "0"
    (other / "data.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=f"{other} has other vocabularies than the data in"):
        load(other, other)


@pytest.mark.parametrize("damage", ["gone", "cut off"])
def test_a_shard_that_was_lost_is_written_again(undisturbed, prepared, folds, tmp_path, damage):
    directory = shutil.copytree(undisturbed, tmp_path / "labels")
    whole = files(directory)
    shard = directory / "train-00003-of-00005.array_record"
    shard.unlink()
    if damage == "cut off":
        shard.write_bytes(whole[shard.name][:100])
    assert run(directory, prepared, folds)
    written = files(directory)
    assert written[shard.name] == whole[shard.name]
    assert (
        json.loads(written["manifest.json"])["splits"]
        == (json.loads(whole["manifest.json"])["splits"])
    )


@pytest.fixture
def damaged(undisturbed, tmp_path, prepared):
    """Changes a copy of the labels: opening it and reading its training outputs."""

    def call(change):
        directory = tmp_path / f"copy-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(undisturbed, directory)
        change(directory)
        return PseudoOutputs.open(str(directory), prepared).outputs("train")

    return call


def edit(**changes):
    def change(directory):
        path = directory / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (shutil.rmtree, FileNotFoundError, "holds no pseudo outputs: run python -m bidi.pseudo"),
        (edit(format=0), DataError, "has format 0, this version reads 1: delete manifest"),
        (edit(fingerprint={}), DataError, "holds outputs for other data than those in"),
        (
            lambda directory: (directory / "train-00003-of-00005.array_record").unlink(),
            DataError,
            "lacks some of the outputs for the 200 pairs of train: run python -m bidi.pseudo again",
        ),
    ],
    ids=["none", "format", "data", "shard"],
)
def test_what_cannot_be_trained_on_says_what_to_do(damaged, change, error, says):
    with pytest.raises(error, match=says):
        damaged(change)
