"""How devices that are not there are named; compiling is shown in tests/test_compile.py."""

import re

import pytest

from bidi.benchmarking import devices, topology
from bidi.errors import ConfigError


@pytest.mark.parametrize(("name", "extra"), [("v5e:1x1", "tpu-compile"), ("h100:1", "gpu-compile")])
def test_no_compiler(monkeypatch, name, extra):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(topology.NoCompilerError, match=rf"{name} needs .*'bidi\[{extra}\]'"):
        topology.topology(name)


@pytest.mark.parametrize("sides", ["", "0", "2x", "2x0", "1x2x4", "8:1", "-1"])
def test_no_number_of_gpus(sides):
    with pytest.raises(ConfigError, match=re.escape(f"--topology=h100:{sides}: write how many")):
        topology.topology(f"h100:{sides}")


def test_every_gpu_is_a_known_chip():
    for gpu in topology._GPUS.values():
        assert gpu.kind in devices.CHIPS
        assert devices.peak_flops(gpu.kind, "bfloat16") == devices.CHIPS[gpu.kind].flops
        # Two operations of each lane in a clock are a small part of what the products' units do.
        scalar = 2e9 * gpu.multiprocessors * gpu.lanes * gpu.clock
        assert 10 < devices.CHIPS[gpu.kind].flops / scalar < 20


@pytest.mark.parametrize(
    ("platform", "kind", "option"),
    [
        ("gpu", "NVIDIA H100 80GB HBM3", "xla_gpu_autotune_level"),
        ("tpu", "TPU v6 lite", "xla_tpu_offload_gather_to_sparsecore"),
        ("tpu", "TPU v5 lite", None),
    ],
)
def test_what_is_asked_of_the_compiler(platform, kind, option):
    class Device:
        pass

    Device.platform, Device.device_kind = platform, kind
    assert list(topology.compiler_options(Device) or [None]) == [option]
