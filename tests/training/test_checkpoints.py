"""What is saved comes back bit for bit, or not at all."""

import contextlib
import logging
import shutil

import grain
import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bidi.errors import UserError
from bidi.training.checkpoints import (
    Checkpoints,
    FailedSaveError,
    checksum,
)
from bidi.training.step import TrainState
from tests.training.tiny import assert_trees_equal

# Orbax leaves coroutines unfinished where it cannot read a checkpoint.


def reads_damage(test):
    for category in ("pytest.PytestUnraisableExceptionWarning", "RuntimeWarning"):
        test = pytest.mark.filterwarnings(f"ignore::{category}")(test)
    return test


def replicated(devices):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("devices",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


TWO = replicated(2)


def make_state(step, devices=TWO, ema=True, size=40):
    """A state that differs in every leaf from those of other steps."""
    rng = np.random.default_rng(step)
    params = {
        "dense": {"kernel": rng.normal(size=(size, 30)), "bias": rng.normal(size=30)},
        "embedding": rng.normal(size=(size, 7)),
    }
    params = jax.tree.map(np.float32, params)
    optimizer = jax.tree.map(
        lambda leaf: np.asarray(rng.normal(size=leaf.shape)).astype(leaf.dtype),
        jax.eval_shape(optax.adamw(1e-3).init, params),
    )
    average = jax.tree.map(lambda leaf: leaf + np.float32(1), params) if ema else None
    return jax.device_put(TrainState(np.int32(step), params, optimizer, average), devices)


def shapes_of(state, devices=TWO):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=devices), state
    )


def make_data(taken=0):
    data = iter(grain.MapDataset.range(100).to_iter_dataset(grain.ReadOptions(num_threads=0)))
    for _ in range(taken):
        next(data)
    return data


class Run:
    """A workdir whose checkpoints are opened anew at each use, as by a new process."""

    def __init__(self, workdir, keep=2):
        self.workdir, self.keep = workdir, keep

    def __enter__(self):
        self._open = Checkpoints(self.workdir, self.keep)
        return self._open

    def __exit__(self, *_):
        self._open.close()

    def save(self, *steps, losses=None, **kinds):
        """Saves states of these steps, the data behind as many elements."""
        with self as checkpoints:
            for number, step in enumerate(steps):
                loss = losses[number] if losses else 1.0
                checkpoints.save(make_state(step, **kinds), make_data(step), {"it": step}, loss)

    def restore(self):
        """The step, once all that was restored is compared with what was saved; None if nothing."""
        data = make_data()
        with self as checkpoints:
            restored = checkpoints.restore_latest(shapes_of(make_state(1)), data)
        if restored is None:
            return None
        state, progress = restored
        assert_trees_equal(state, make_state(int(state.step)))
        assert progress["it"] == state.step == next(data)
        return int(state.step)


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def test_nothing_to_restore(run):
    assert run.restore() is None
    with run as checkpoints:
        assert checkpoints.best_step() is None
        assert checkpoints.latest_step() is None


def test_the_newest_comes_back_with_its_place_in_the_data(run):
    run.save(3, 5)
    assert run.restore() == 5


def test_a_state_may_be_donated_and_the_data_go_on_while_it_is_saved(run):
    """The background writes the state at the call, not what its memory holds later."""
    state, data = make_state(4, size=20_000), make_data(4)
    expected = jax.tree.map(np.array, make_state(4, size=20_000))
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    jax.block_until_ready(overwrite(make_state(4, size=20_000)))
    with run as checkpoints:
        checkpoints.save(state, data, {"it": 4}, 1.0)
        for _ in range(20):
            state = overwrite(state)
            next(data)
        jax.block_until_ready(state)
    shapes, data = shapes_of(state), make_data()
    with run as checkpoints:
        restored, _ = checkpoints.restore_latest(shapes, data)
    assert_trees_equal(restored, expected)
    assert next(data) == 4


def test_the_newest_and_the_best_are_kept(run):
    run.save(1, 2, 3, 4, 5, losses=[3.0, 1.0, 2.0, 5.0, 4.0])
    with run as checkpoints:
        assert checkpoints.all_steps() == [2, 4, 5]
        assert checkpoints.best_step() == 2
        assert checkpoints.latest_step() == 5


def test_the_best_is_the_newest_where_none_was_validated(run):
    run.save(3, 5, losses=[None, None])
    with run as checkpoints:
        assert checkpoints.best_step() == 5


def test_a_bad_newest_is_kept(run):
    run.save(1, 2, 3, losses=[1.0, 2.0, 9.0])
    assert run.restore() == 3


def test_one_without_a_loss_is_never_the_best(run):
    run.save(1, 2, 3, 4, losses=[1.0, 2.0, 3.0, None])
    with run as checkpoints:
        assert checkpoints.all_steps() == [1, 3, 4]
        assert checkpoints.best_step() == 1
    run.save(5, 6, losses=[4.0, 5.0])
    with run as checkpoints:
        assert checkpoints.all_steps() == [1, 5, 6]


@pytest.mark.parametrize("devices", [1, 8])
def test_another_number_of_devices(run, devices):
    run.save(3)
    with run as checkpoints:
        state, _ = checkpoints.restore_latest(
            shapes_of(make_state(3), replicated(devices)), make_data()
        )
    assert_trees_equal(state, make_state(3))
    for leaf in jax.tree.leaves(state):
        assert leaf.sharding.is_equivalent_to(replicated(devices), leaf.ndim)


def test_without_a_moving_average(run):
    run.save(3, ema=False)
    with run as checkpoints:
        state, _ = checkpoints.restore_latest(shapes_of(make_state(3, ema=False)), make_data())
        params = checkpoints.restore_params(3, shapes_of(state.params))
    assert_trees_equal(state, make_state(3, ema=False))
    assert_trees_equal(params, state.params)


def test_the_moving_average_is_what_is_evaluated(run):
    run.save(3, 4)
    for step in (3, 4):
        state = make_state(step)
        with run as checkpoints:
            params = checkpoints.restore_params(step, shapes_of(state.params))
        assert_trees_equal(params, state.ema)


def flip(path):
    """Turns one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def truncate_all(directory):
    """All files of values: half of one may be what was written and replaced."""
    for path in directory.rglob("d/*"):
        truncate(path)


def largest(directory):
    """Of the files of values: how many there are depends on what was written in which moment."""
    return max(directory.rglob("d/*"), key=lambda path: path.stat().st_size)


DAMAGE = {
    "parameters flipped": lambda step: flip(largest(step / "params")),
    "parameters truncated": lambda step: truncate_all(step / "params"),
    "optimiser truncated": lambda step: truncate_all(step / "optimizer"),
    "average flipped": lambda step: flip(largest(step / "ema")),
    "data missing": lambda step: shutil.rmtree(step / "data"),
    "progress empty": lambda step: (step / "progress" / "metadata").write_bytes(b""),
    "metrics cut off": lambda step: truncate(step / "metrics" / "metrics"),
    "metrics of another name": lambda step: flip(step / "metrics" / "metrics"),
    "all missing": lambda step: [shutil.rmtree(path) for path in step.iterdir() if path.is_dir()],
}


@pytest.fixture(scope="module")
def saved_twice(tmp_path_factory):
    """The workdir of states of steps 5 and 7."""
    workdir = tmp_path_factory.mktemp("saved_twice")
    Run(workdir).save(5, 7)
    return workdir


@reads_damage
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_said_and_set_aside_and_the_one_before_taken(
    run, saved_twice, damage, caplog
):
    shutil.copytree(saved_twice, run.workdir, dirs_exist_ok=True)
    DAMAGE[damage](run.workdir / "checkpoints" / "7")
    assert run.restore() == 5
    said = [record for record in caplog.records if record.name.startswith("bidi")]
    assert [record.levelno for record in said] == [logging.ERROR]
    assert "step 7" in caplog.text
    assert (run.workdir / "unreadable-7").is_dir()
    run.save(7)  # training goes on from step 5 and comes to step 7 again
    assert run.restore() == 7


def test_a_device_without_room_is_no_damage(run, monkeypatch):
    run.save(3)

    def without_room(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_restore", without_room)
        with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
            run.restore()
    assert run.restore() == 3


@reads_damage
def test_the_same_step_damaged_again(run):
    run.save(3)
    for _ in range(3):
        run.save(7)
        DAMAGE["progress empty"](run.workdir / "checkpoints" / "7")
        assert run.restore() == 3
    assert len(list(run.workdir.glob("unreadable-7*"))) == 3


@reads_damage
def test_all_damaged_but_the_best(run):
    run.save(1, 2, 3, 4, losses=[1.0, 2.0, 3.0, 4.0])
    for step in (3, 4):
        DAMAGE["parameters flipped"](run.workdir / "checkpoints" / str(step))
    assert run.restore() == 1
    assert sorted(path.name for path in run.workdir.iterdir()) == [
        "checkpoints",
        "unreadable-3",
        "unreadable-4",
    ]


@reads_damage
def test_all_damaged_is_an_error_that_names_them_and_moves_nothing(run):
    run.save(5, 7)
    for step in (5, 7):
        DAMAGE["parameters truncated"](run.workdir / "checkpoints" / str(step))
    with pytest.raises(UserError) as caught:
        run.restore()
    for part in (str(run.workdir / "checkpoints"), "step 5: ", "step 7: "):
        assert part in str(caught.value)
    assert sorted(path.name for path in (run.workdir / "checkpoints").iterdir()) == ["5", "7"]


def test_what_closing_raises_hides_no_error(run, monkeypatch, caplog):
    """As Orbax does where a save has failed in two of its threads."""
    close = ocp.CheckpointManager.close

    def raise_again(manager):
        close(manager)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ocp.CheckpointManager, "close", raise_again)
    with pytest.raises(FailedSaveError, match="the last good one"), run:
        raise FailedSaveError("the last good one")
    assert "No space left" in caplog.text


def test_damaged_parameters_are_not_evaluated(run):
    run.save(3)
    DAMAGE["average flipped"](run.workdir / "checkpoints" / "3")
    with run as checkpoints, pytest.raises(ValueError, match="ema has checksum"):
        checkpoints.restore_params(3, shapes_of(make_state(3).params))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("saved")
    Run(workdir).save(3)
    return workdir


@reads_damage
@given(st.data())
@settings(max_examples=25, deadline=None)
def test_whatever_is_damaged_no_wrong_state_comes_back(saved, tmp_path_factory, data):
    run = Run(tmp_path_factory.mktemp("copy"))
    shutil.copytree(saved, run.workdir, dirs_exist_ok=True)
    files = sorted(path for path in run.workdir.rglob("*") if path.is_file())
    path = data.draw(st.sampled_from(files), "file")
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1), "place")
    match data.draw(st.sampled_from(["flip", "cut", "delete"])):
        case "flip":
            content[place] ^= 1 << data.draw(st.integers(0, 7), "bit")
            path.write_bytes(content)
        case "cut":
            path.write_bytes(content[:place])
        case "delete":
            path.unlink()
    with contextlib.suppress(UserError):
        assert run.restore() in (3, None)  # `restore` compares; None: it was set aside
    shutil.rmtree(run.workdir)


def test_a_save_cut_off_is_not_seen_and_its_step_can_be_saved(run):
    run.save(3)
    begun = run.workdir / "checkpoints" / "5.orbax-checkpoint-tmp"
    shutil.copytree(run.workdir / "checkpoints" / "3", begun)
    with run as checkpoints:  # who only reads does not know but that it is being written
        assert checkpoints.all_steps() == [3]
    assert begun.exists()
    assert run.restore() == 3
    assert not begun.exists()
    run.save(5)
    assert run.restore() == 5


@settings(max_examples=60)
@given(leaf=st.integers(0, 1), word=st.integers(0, 6), bit=st.integers(0, 31))
def test_any_changed_bit_changes_the_checksum(leaf, word, bit):
    leaves = [np.arange(1, 8, dtype=np.float32), np.arange(11, 18, dtype=np.float32)]
    before = checksum(leaves)
    leaves[leaf].view(np.uint32)[word] ^= np.uint32(1 << bit)
    assert checksum(leaves) != before


def test_the_checksum_tells_places():
    one, other = np.arange(1, 8, dtype=np.float32), np.arange(11, 18, dtype=np.float32)
    sums = [checksum(leaves) for leaves in ([one, other], [other, one], [one[::-1], other])]
    assert len({int(total) for total in sums}) == 3
