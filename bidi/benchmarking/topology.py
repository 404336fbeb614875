"""Devices that are not there, to be compiled for: TPUs by libtpu, GPUs by jax's CUDA plugin."""

import dataclasses
import importlib.util
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from bidi.benchmarking.devices import CHIPS
from bidi.errors import ConfigError

# Without them libtpu asks a server of Google's cloud, which is not there, what machine this is, and
# refuses to be loaded by two processes, of which one alone can have a TPU.
_NO_TPU = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}

# On these two cores of a chip are one device, if nothing else is asked for.
_MEGACORE = ("v4", "v5p")


@dataclasses.dataclass(frozen=True)
class _Gpu:
    """What XLA's compiler asks of a GPU, by NVIDIA's data sheets and tuning guides.

    Attributes:
        kind: as the device calls itself.
        capability: the compute capability, as XLA writes it.
        multiprocessors: how many.
        lanes: float32 operations of a multiprocessor in a clock.
        clock: GHz.
        shared: bytes of a multiprocessor's shared memory, of which a block gets 1 KiB less.
        level2: bytes of the cache before main memory.
    """

    kind: str
    capability: str
    multiprocessors: int
    lanes: int
    clock: float
    shared: int
    level2: int

    @property
    def description(self) -> str:
        """XLA's `GpuTargetConfigProto`, as text."""
        chip = CHIPS[self.kind]
        return f"""
            gpu_device_info {{
              threads_per_block_limit: 1024
              threads_per_warp: 32
              threads_per_core_limit: 2048
              block_dim_limit_x: {2**31 - 1}
              block_dim_limit_y: {2**16 - 1}
              block_dim_limit_z: {2**16 - 1}
              registers_per_block_limit: {2**16}
              registers_per_core_limit: {2**16}
              shared_memory_per_block: {48 * 2**10}
              shared_memory_per_block_optin: {self.shared - 2**10}
              shared_memory_per_core: {self.shared}
              core_count: {self.multiprocessors}
              fpus_per_core: {self.lanes}
              clock_rate_ghz: {self.clock}
              l2_cache_size: {self.level2}
              memory_bandwidth: {int(chip.bandwidth)}
              device_memory_size: {int(chip.memory)}
              cuda_compute_capability {{ {self.capability} }}
            }}
            platform_name: "CUDA"
            dnn_version_info {{ major: 9 minor: 10 }}
            device_description_str: "{self.kind}"
        """


_HOPPER = "major: 9 feature_extension: ACCELERATED_FEATURES"
_GPUS = {
    "a100": _Gpu("NVIDIA A100-SXM4-80GB", "major: 8", 108, 64, 1.41, 164 * 2**10, 40 * 2**20),
    "h100": _Gpu("NVIDIA H100 80GB HBM3", _HOPPER, 132, 128, 1.98, 228 * 2**10, 50 * 2**20),
    "h200": _Gpu("NVIDIA H200", _HOPPER, 132, 128, 1.98, 228 * 2**10, 50 * 2**20),
}

CUDA_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")

# SparseCores look embeddings up on v6e. How libtpu 0.0.52 writes that, jaxlib 0.10.2 cannot read,
# so they are looked up by the TensorCores there.
_READABLE: jax.stages.CompilerOptions = {"xla_tpu_offload_gather_to_sparsecore": "false"}
# Kernels are tuned by running them.
_UNTUNED: jax.stages.CompilerOptions = {"xla_gpu_autotune_level": "0"}


class NoCompilerError(ModuleNotFoundError):
    """libtpu, or jax's plugin for CUDA, is not installed."""


def topology(name: str) -> Sequence[jax.Device]:
    """The devices of a topology, `v5e:4x4` or `h100:8`; they can only be compiled for.

    Raises:
        NoCompilerError: what compiles for them is not there.
        ConfigError: there is no such topology, or nothing is known of its chips.
    """
    chip = name.partition(":")[0]
    return _gpus(name) if chip in _GPUS else _tpus(name)


def compiler_options(device: jax.Device) -> jax.stages.CompilerOptions | None:
    """What to ask of the compiler for such a device."""
    if device.platform == "gpu":
        return _UNTUNED
    return _READABLE if device.device_kind == "TPU v6 lite" else None


def _gpus(name: str) -> Sequence[jax.Device]:
    chip, _, sides = name.partition(":")
    size = re.fullmatch(r"(?:(\d+)x)?(\d+)", sides)
    if not size or not int(size[1] or 1) * int(size[2]):
        raise ConfigError(
            f"--topology={name}: write how many GPUs a machine has, like {chip}:8, or how "
            f"many machines of how many, like {chip}:2x8"
        )
    if not any(map(importlib.util.find_spec, CUDA_PLUGINS)):
        raise NoCompilerError(
            f"--topology={name} needs jax's plugin for CUDA, but no CUDA: pip install "
            "'bidi[gpu-compile]' (Linux)"
        )
    shape = f"1x{size[1] or 1}x{size[2]}"
    found: Any = topologies.get_topology_desc(
        chip, "cuda", target_config=_GPUS[chip].description, topology=shape
    )
    return found.devices


def _tpus(name: str) -> Sequence[jax.Device]:
    if importlib.util.find_spec("libtpu") is None:
        raise NoCompilerError(
            f"--topology={name} needs libtpu, TPUs' compiler: pip install 'bidi[tpu-compile]' "
            f"(Linux); GPUs are {', '.join(_GPUS)}"
        )
    for variable, value in _NO_TPU.items():
        os.environ.setdefault(variable, value)
    options = {"chip_config_name": "megacore"} if name.startswith(_MEGACORE) else {}
    try:
        found: Any = topologies.get_topology_desc(name, "tpu", **options)
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(
            f"--topology={name}: {error}; write the chip and how many there are along each side, "
            f"like v5e:4x4, v6e:2x2 or v4:2x2x1; GPUs are {', '.join(_GPUS)}"
        ) from None
    devices = found.devices
    if devices[0].device_kind not in CHIPS:
        raise ConfigError(
            f"--topology={name}: nothing is known of {devices[0].device_kind}; known are "
            f"{', '.join(CHIPS)}"
        )
    return devices
