"""What test_two_processes.py runs in two processes, on two devices each.

python -m tests.two_processes --directory=DIR, with the flags of a verb: each process leaves what it
saw in DIR/<process>.pickle. What must hold in each by itself is asserted here.
"""

import contextlib
import io
import pathlib
import pickle
import signal

import jax
import pytest
from absl import flags
from absl.testing import flagsaver

from bidi import distributed, experiment, verb
from bidi import evaluate as evaluate_verb
from bidi import translate as translate_verb
from bidi.data.partner import Partner
from bidi.errors import ConfigError, DataError, UserError
from bidi.training import loop
from bidi.training.optimizer import OptimizerConfig
from bidi.training.partitioner import Pmap
from bidi.training.step import Trainer
from bidi.training.workdir import CannotResumeError
from tests.training.tiny import TOKENS, Bigram, make_batch

ROWS = len(TOKENS)
UPDATES = 3
ACCUMULATION = 2
RESCORE = ["Agreement.rescore = True"]


def make_trainer():
    """With dropout, so that every device must have a number of its own."""
    # A large eps: see tests/training/test_partitioner.py.
    optimizer = OptimizerConfig(0.05, warmup_steps=2, eps=1e-3, weight_decay=0.01, clip_norm=0.5)
    return Trainer(Bigram(dropout=0.3), optimizer.make(), Partner(), 0.1, ema_decay=0.5)


def make_pmap(devices=None):
    return Pmap(make_trainer(), ACCUMULATION, ROWS, devices)


def train(pmap):
    """The state after some updates, losses, and sums of a validation batch."""
    me, share = jax.process_index(), ROWS // jax.process_count()

    def mine(seed):
        return {k: v[me * share : (me + 1) * share] for k, v in make_batch(seed).items()}

    rng = jax.random.key(7)
    first = jax.device_get(jax.jit(make_trainer().init)(jax.random.key(0), make_batch(0)))
    state, losses = jax.device_put(first, pmap.shardings), []
    for number in range(UPDATES):
        before = state
        state, metrics = pmap.train_step(before, pmap.for_training(mine(number + 1)), rng)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
        losses.append(float(metrics["sums"].loss))
    for leaf in jax.tree.leaves(state):
        assert leaf.sharding.is_equivalent_to(pmap.shardings, leaf.ndim)
    sums = pmap.evaluate_step(state.params, pmap.for_evaluation(mine(0)))
    return jax.device_get((state, losses, sums))


def run_verb(verb_module, bindings, **values):
    """What a verb prints."""
    printed = io.StringIO()
    with flagsaver.flagsaver(**values), contextlib.redirect_stdout(printed):
        verb_module.main(bindings)
    return printed.getvalue()


def run_verbs(directory):
    """Evaluates and translates; what was printed."""
    workdir, source = str(directory / "both"), str(directory / "source")
    return [
        run_verb(evaluate_verb, [], workdir=workdir),
        run_verb(evaluate_verb, RESCORE, workdir=workdir),
        run_verb(translate_verb, [], workdir=workdir, input=source, json=True),
    ]


def double(numbers, letters):
    return [letter * 2 + str(number) for number, letter in zip(numbers, letters, strict=True)]


def fail_in_the_first():
    assert distributed.is_first()
    raise CannotResumeError("the first says no")


def error_of(kinds, function, *arguments, **values):
    with pytest.raises(kinds) as caught:
        function(*arguments, **values)
    return str(caught.value)


def see(directory):
    """What this process sees of all."""
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    me, votes, both = jax.process_index(), distributed.Votes(), directory / "both"
    other = experiment.load([both / "config.gin"], ["Training.seed = 5"])
    return {
        "gathered": distributed.allgather("x" * me),
        "shares": [distributed.in_shares(double, range(n), "abcdefg"[:n]) for n in (0, 1, 2, 7)],
        "votes": [votes.any(me == 1 and number == 2) for number in range(5)],
        "error": error_of(CannotResumeError, distributed.from_first, fail_in_the_first),
        "alike": distributed.check_alike({"steps": 3, "seed": 1}),
        "unlike": error_of(ConfigError, distributed.check_alike, {"steps": 3, "seed": me}),
        "trained": train(make_pmap()),
        "refused": error_of(CannotResumeError, loop.train, other, both),
        "unreadable": error_of(
            (DataError, FileNotFoundError),
            run_verb,
            translate_verb,
            [],
            workdir=str(both),
            input=str(directory / "none"),
        ),
        "other flags": error_of(
            ConfigError,
            run_verb,
            translate_verb,
            [f"Search.beam_size = {4 + me}"],
            workdir=str(both),
            input=str(directory / "source"),
        ),
        "printed": run_verbs(directory),
    }


def main(bindings):
    directory = pathlib.Path(flags.FLAGS.directory)
    seen = see(directory)
    (directory / f"{jax.process_index()}.pickle").write_bytes(pickle.dumps(seen))
    distributed.allgather("all is written")
    if jax.process_index() == 1:
        raise UserError("the second gives up")
    distributed.allgather("what the second never says")


if __name__ == "__main__":
    flags.DEFINE_string("directory", None, "Where things are.")
    distributed._HEARTBEAT_SECONDS = 10
    verb.run("two_processes", main, processes=True)
