import json
import shutil

import jax
import numpy as np
import pytest

from bidi import experiment
from bidi.errors import DataError, UserError
from bidi.evaluation.found import Tally
from bidi.evaluation.restore import load_system, restore_generator
from tests.trained_run import STEPS


def load(workdir, checkpoint="best", partner=None, bindings=()):
    partner = None if partner is None else str(partner)
    loaded = experiment.load_run(str(workdir), list(bindings))
    return load_system(str(workdir), loaded, checkpoint, partner)


def test_checkpoints_by_name_and_step(trained):
    loaded = experiment.load_run(str(trained.both), [])
    params = {}
    for checkpoint, step in (("best", STEPS), ("latest", STEPS), (str(STEPS // 2), STEPS // 2)):
        generator, found = restore_generator(str(trained.both), loaded, checkpoint)
        assert found == step
        params[checkpoint] = generator.params
        assert generator.target_vocabulary.decode([6]).isupper()
    jax.tree.map(np.testing.assert_array_equal, params["best"], params["latest"])
    moved = jax.tree.map(
        lambda a, b: float(abs(a - b).max()), params["best"], params[str(STEPS // 2)]
    )
    assert min(jax.tree.leaves(moved["target_embedding"])) > 0


@pytest.mark.parametrize(
    ("bindings", "length"),
    [
        ([], 7),
        (["Data.max_source_length = 5"], 7),
        (["Data.max_source_length = 5", "Data.truncate_source = True"], 5),
    ],
)
def test_sources_are_cut_to_a_row_or_as_in_training(trained, bindings, length):
    loaded = experiment.load_run(str(trained.both), bindings)
    generator, _ = restore_generator(str(trained.both), loaded, "best")
    (ids,) = generator._with_end(generator._token_ids(["abcdeabcde"]), Tally())
    assert len(ids) == length + 1


@pytest.mark.parametrize(
    ("checkpoint", "says"),
    [
        ("7", rf"no checkpoint '7'; it has \[{STEPS // 2}, {STEPS}\]"),
        ("newest", "--checkpoint=newest is none of best, latest or a step"),
        ("-1", "none of best"),
    ],
)
def test_no_such_checkpoint(trained, checkpoint, says):
    with pytest.raises(FileNotFoundError, match=says):
        load(trained.both, checkpoint)


def test_a_run_without_checkpoints(trained, tmp_path):
    workdir = shutil.copytree(trained.both, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints")
    for checkpoint in ("best", "latest"):
        with pytest.raises(FileNotFoundError, match=f"no checkpoint '{checkpoint}'; it has none"):
            load(workdir, checkpoint)


def test_what_cannot_be_read_is_named_with_the_others(trained, tmp_path):
    workdir = shutil.copytree(trained.both, tmp_path / "run")
    path = workdir / "checkpoints" / str(STEPS)
    with pytest.raises(DataError) as caught:
        load(workdir, bindings=["Transformer.feedforward_size = 32"])
    for says in (f"{path} cannot be read", "has shape", "were changed, take them back"):
        assert says in str(caught.value)
    progress = json.loads((path / "progress" / "metadata").read_text())
    progress["checksums"]["params"] ^= 1
    (path / "progress" / "metadata").write_text(json.dumps(progress))
    with pytest.raises(DataError) as caught:
        load(workdir)
    for says in ("params has checksum", f"by --checkpoint: there are [{STEPS // 2}, {STEPS}]"):
        assert says in str(caught.value)
    assert load(workdir, str(STEPS // 2)).steps == (STEPS // 2,)


@pytest.mark.usefixtures("restore_once")
def test_a_partner_that_cannot_search_so(trained, tmp_path):
    workdir = shutil.copytree(trained.both, tmp_path / "partner")
    config_file = workdir / "config.gin"
    text = config_file.read_text().replace("Search.coupling = 'none'", "Search.coupling = 'paired'")
    text = text.replace("Transformer.interaction = 'none'", "Transformer.interaction = 'layers'")
    config_file.write_text(text)
    says = f"--partner_workdir={workdir} is searched with its own .*beam_size = 3 is odd"
    with pytest.raises(UserError, match=says):
        load(trained.l2r, partner=workdir, bindings=["Search.beam_size = 3"])


def test_a_partner_is_given_as_many_tokens_at_once(trained):
    system = load(trained.l2r, partner=trained.r2l, bindings=["Evaluation.batch_tokens = 64"])
    assert [one._batching.batch_tokens for one in system.generators] == [64, 64]


@pytest.mark.usefixtures("restore_once")
def test_who_may_agree(trained):
    rescore = ["Agreement.rescore = True"]
    assert load(trained.both, bindings=rescore).rescores
    assert not load(trained.both).rescores
    for one, other in (
        (trained.l2r, trained.r2l),
        (trained.r2l, trained.l2r),
        (trained.l2r, trained.l2r),
        (trained.both, trained.l2r),
        (trained.l2r, trained.both),
    ):
        system = load(one, partner=other)
        assert system.rescores
        assert system.workdirs == (str(one), str(other))
        assert system.steps == (STEPS, STEPS)


@pytest.mark.usefixtures("restore_once")
def test_one_score_alone_is_refused(trained):
    with pytest.raises(UserError, match=r"needs two scores .* gives one, l2r: use a model"):
        load(trained.l2r, bindings=["Agreement.rescore = True"])


@pytest.mark.usefixtures("restore_once")
def test_interaction_is_asked_of_models_that_have_it(trained):
    interact = ["Agreement.interact = True"]
    assert not load(trained.both, bindings=interact).rescores
    for workdir, partner, bindings in (
        (trained.both, None, ["Agreement.rescore = True", *interact]),
        (trained.l2r, trained.r2l, interact),
    ):
        with pytest.raises(UserError, match=f"the streams of {workdir} do not read"):
            load(workdir, partner=partner, bindings=bindings)


@pytest.mark.usefixtures("restore_once")
def test_models_of_other_vocabularies_are_refused(trained, tmp_path):
    partner = shutil.copytree(trained.r2l, tmp_path / "partner")
    identity = json.loads((partner / "data.json").read_text())
    identity["vocabularies"]["target"]["sha256"] = "0"
    (partner / "data.json").write_text(json.dumps(identity))
    with pytest.raises(UserError, match=f"{partner} has other vocabularies than"):
        load(trained.l2r, partner=partner)


@pytest.mark.usefixtures("restore_once")
def test_a_partner_that_is_no_workdir(trained, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} is no workdir"):
        load(trained.l2r, partner=tmp_path)
