"""The verb on a tiny experiment; needs libtpu and jax's CUDA plugin for all but its errors."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest
from absl import flags
from absl.testing import flagsaver

from bidi import compile, config
from bidi.benchmarking import topology
from bidi.errors import UserError

GIN = """
Data.directory = 'nowhere'
Data.source = @ParallelText()
Data.source_vocabulary = @Vocabulary()
ParallelText.source = {'train': 'nowhere'}
ParallelText.target = {'train': 'nowhere'}
Vocabulary.size = 64
Streams.ways = 'both'
Batches.rows = 8
Batches.source_length = 8
Batches.target_length = 8
Transformer.encoder_layers = 1
Transformer.decoder_layers = 1
Transformer.model_size = 16
Transformer.heads = 2
Transformer.feedforward_size = 32
Transformer.dropout = 0.0
Search.coupling = 'none'
Evaluation.batch_tokens = 64
"""

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not here (bidi[tpu-compile])"
)
needs_cuda_plugin = pytest.mark.skipif(
    not any(map(importlib.util.find_spec, topology.CUDA_PLUGINS)),
    reason="jax's CUDA plugin is not here (bidi[gpu-compile])",
)


@pytest.fixture
def gin_file(tmp_path):
    path = tmp_path / "tiny.gin"
    path.write_text(GIN)
    return path


def call(*arguments):
    """In a process of its own: libtpu logs where no test should have to look, and stays loaded."""
    return subprocess.run(
        [sys.executable, "-m", "bidi.compile", *map(str, arguments)],
        cwd=pathlib.Path(compile.__file__).parents[1],
        env={**os.environ, "XLA_FLAGS": "", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def report_of(tmp_path, *arguments):
    """What such a call, which must go well, writes."""
    output = tmp_path / "report.json"
    done = call(*arguments, f"--output={output}")
    assert done.returncode == 0, done.stderr
    return json.loads(output.read_text())["programs"]


@needs_libtpu
def test_update_and_search(gin_file, tmp_path):
    output = tmp_path / "report.json"
    done = call("--topology=v5e:2x2", f"--gin_file={gin_file}", f"--output={output}")
    assert done.returncode == 0, done.stderr
    report = json.loads(output.read_text())
    assert (report["topology"], report["chip"]) == ("v5e:2x2", "TPU v5 lite")
    train, search = report["programs"]["train"], report["programs"]["search"]
    assert train["devices"] == search["devices"] == 4
    parameters = train["memory"]["parameters"]
    # Adam's two moments and its counters.
    assert 0 < train["memory"]["optimizer"] - 2 * parameters < 100
    reduced = train["work"]["collectives"]["all-reduce"]["bytes"]
    # The gradient; sums of the loss, and the sources of suspects: a row of each device.
    assert 0 < reduced - parameters < 400
    assert train["work"]["flops"] >= 0.9 * train["flops_needed"] > 0
    assert train["target_tokens"] == 8 * 8 * 2
    assert search["memory"]["parameters"] == parameters
    assert search["memory"]["prepared"] == 64 * 16 * 4  # the output's kernel
    assert search["work"]["collectives"] == {}  # each device has sentences of its own
    assert search["work"]["open_loops"] == 1
    for one in (train, search):
        assert one["fits"]
        assert min(one["memory"].values()) >= 0
        parts = {**one["memory"]}
        assert parts.pop("total") == sum(parts.values()) - parts["chip"]
        limits = {key: one["roofline"][key] for key in ("compute", "memory", "interconnect")}
        assert one["roofline"]["seconds"] == max(limits.values())
        assert one["roofline"]["bound"] == max(limits, key=limits.get)
    assert "v5e:2x2 (TPU v5 lite)" in done.stdout
    assert "needed by arithmetic" in done.stdout


@needs_libtpu
def test_a_mesh_divides_the_state(gin_file, tmp_path):
    train = report_of(
        tmp_path,
        "--topology=v5e:2x2",
        f"--gin_file={gin_file}",
        "--programs=train",
        "--gin.Training.partitioner=mesh",
        "--gin.Mesh.fsdp=4",
        "--gin.Mesh.data=1",
    )["train"]
    assert train["memory"]["optimizer"] < 0.6 * 2 * 16 * (64 + 64) * 4 * 4
    assert train["work"]["collectives"].keys() & {"all-gather", "reduce-scatter", "all-reduce"}


@needs_libtpu
def test_large_embeddings_on_v6e(gin_file, tmp_path):
    """Where libtpu by itself would look them up on SparseCores."""
    train = report_of(
        tmp_path,
        "--topology=v6e:2x2",
        f"--gin_file={gin_file}",
        "--programs=train",
        "--gin.Vocabulary.size=32000",
        "--gin.Transformer.model_size=128",
        "--gin.Batches.rows=256",
        "--gin.Batches.source_length=128",
    )["train"]
    assert train["work"]["flops"] >= 0.9 * train["flops_needed"] > 0


@needs_libtpu
def test_a_topology_that_is_none(gin_file):
    done = call("--topology=v5e:3x5", f"--gin_file={gin_file}")
    assert done.returncode == 1
    assert "bidi.compile: --topology=v5e:3x5: " in done.stderr
    assert "like v5e:4x4" in done.stderr


@needs_cuda_plugin
@pytest.mark.parametrize("chip", ["a100", "h100", "h200"])
def test_on_a_gpu(gin_file, tmp_path, chip):
    report = report_of(tmp_path, f"--topology={chip}:1", f"--gin_file={gin_file}")
    train, search = report["train"], report["search"]
    assert train["devices"] == search["devices"] == 1
    assert train["work"]["flops"] == train["flops_needed"] > 0
    assert train["work"]["collectives"] == {}
    parameters = train["memory"]["parameters"]
    assert train["work"]["bytes"] > 3 * parameters
    assert search["work"]["open_loops"] == 1
    rounds = search["rounds"] * search["work"]["open_kernels"]
    assert 20 < search["work"]["open_kernels"] < 200
    assert rounds < search["work"]["kernels"] < 2 * rounds
    for one in (train, search):
        assert one["fits"]


@needs_cuda_plugin
def test_what_is_cast_before_a_search_is_held_beside_the_parameters(gin_file, tmp_path):
    asked = f"--gin_file={gin_file}", "--programs=search", "--gin.Transformer.dtype=bfloat16"
    memory = report_of(tmp_path, "--topology=h100:1", *asked)["search"]["memory"]
    assert 0 < memory["prepared"] < memory["parameters"]
    assert min(memory.values()) >= 0


@needs_cuda_plugin
def test_gradients_are_added_up_over_gpus(gin_file, tmp_path):
    train = report_of(
        tmp_path, "--topology=h100:2x4", f"--gin_file={gin_file}", "--programs=train"
    )["train"]
    assert train["devices"] == 8
    reduced = train["work"]["collectives"]["all-reduce"]["bytes"]
    assert reduced >= train["memory"]["parameters"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--gin_file is missing"),
        (["--gin_file={gin}"], "--topology is missing"),
        (["--gin_file={gin}", "--topology=v5e:1x1", "--programs=a"], "--programs=a: there are"),
        (["--gin_file={gin}", "--topology=v5e:1x1", "--programs="], "--programs=: there are train"),
        (
            ["--gin_file={gin}", "--topology=v5e:1x1", "--source_tokens=5000"],
            "--source_tokens=5000, but searches of this experiment cut sources to",
        ),
        (["--gin_file={gin}", "--topology=h100"], "--topology=h100: write how many GPUs"),
        (["--gin_file={gin}", "--topology=v5e:1x1", "--output=no/a"], "--output=no/a: there is no"),
    ],
)
def test_what_is_missing_is_named(gin_file, arguments, says):
    config.define_flags()
    with flagsaver.flagsaver():
        flags.FLAGS(["bidi.compile", *(one.format(gin=gin_file) for one in arguments)])
        with pytest.raises(UserError, match=says):
            compile.main([])
