"""What the devices can do: the rate of a plain matrix product, known peaks, memory.

Letters: N rows, D model, F feed-forward.
"""

import dataclasses
import resource
import sys
import time

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a device can do at most.

    Attributes:
        flops: FLOP/s in bfloat16 without sparsity.
        memory: bytes of main memory.
        bandwidth: bytes/s between main memory and cores.
        interconnect: bytes/s that it sends to its neighbours over all links together; not to other
            machines, which GPUs reach by a network.
    """

    flops: float
    memory: float
    bandwidth: float
    interconnect: float


# By `device_kind`; docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e; NVIDIA's data sheets. Sending
# is half of "bidirectional ICI bandwidth per chip", or of what NVLink sends and receives; of v4
# "all-reduce bandwidth per Pod" over its 4096 chips, which for v5e and v6e comes to the same as
# that half.
CHIPS = {
    "NVIDIA A100-SXM4-80GB": Chip(312e12, 80e9, 2039e9, 300e9),
    "NVIDIA H100 80GB HBM3": Chip(989e12, 80e9, 3350e9, 450e9),
    "NVIDIA H200": Chip(989e12, 141e9, 4800e9, 450e9),
    "TPU v4": Chip(275e12, 32 * 2**30, 1200e9, 1.1e15 / 4096),
    "TPU v5 lite": Chip(197e12, 16e9, 819e9, 200e9),
    "TPU v5": Chip(459e12, 95e9, 2765e9, 600e9),
    "TPU v6 lite": Chip(918e12, 32e9, 1638e9, 400e9),
}

# The same as `Chip.flops`, by the longest prefix of `device_kind`.
_PEAKS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200 NVL": 835e12,
    **{kind: chip.flops for kind, chip in CHIPS.items()},
}

# Long enough for the clock and for what it takes to start a program.
_SECONDS = 0.2


class Product:
    """Matrix products on every device at once, as an update runs: [N, D] x [D, F] and back."""

    def __init__(self, rows: int, inner: int, outer: int, dtype: jnp.dtype):
        """Compiles, and finds how many products make a measurement long enough.

        Args:
            rows: N, of each device.
            inner: D.
            outer: F.
            dtype: of both operands.
        """
        devices = jax.local_device_count()
        keys = jax.random.split(jax.random.key(0), 3)
        self._x = jax.random.normal(keys[0], (devices, rows, inner), dtype)
        # Variances are kept: neither infinite nor denormal numbers, which some devices are slow at.
        self._there = jax.random.normal(keys[1], (inner, outer), dtype) * inner**-0.5
        self._back = jax.random.normal(keys[2], (outer, inner), dtype) * outer**-0.5
        self._flops = 2 * 2 * devices * rows * inner * outer
        self._run = jax.pmap(_there_and_back, in_axes=(0, None, None, None))
        self._times = 1
        self._seconds()
        while (seconds := self._seconds()) < _SECONDS:
            self._times = 1 + int(self._times * min(1.2 * _SECONDS / seconds, 100))

    def rate(self) -> float:
        """FLOP/s of all devices together."""
        return self._flops * self._times / self._seconds()

    def _seconds(self) -> float:
        start = time.perf_counter()
        jax.block_until_ready(self._run(self._x, self._there, self._back, self._times))
        return time.perf_counter() - start


def _there_and_back(
    x_ND: jax.Array, there_DF: jax.Array, back_FD: jax.Array, times: jax.Array
) -> jax.Array:
    return jax.lax.fori_loop(0, times, lambda _, y_ND: y_ND @ there_DF @ back_FD, x_ND)


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """FLOP/s that the maker of a device gives for it; None for another dtype or an unknown one."""
    known = [kind for kind in _PEAKS if device_kind.startswith(kind)]
    return _PEAKS[max(known, key=len)] if known and dtype == "bfloat16" else None


def peak_memory() -> dict[str, object]:
    """The most memory that this process has taken so far, `bytes` of `what`."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.devices()]
    known = [peak for peak in peaks if peak is not None]
    if known:
        return {"what": "the fullest device", "bytes": max(known)}
    unit = 1 if sys.platform == "darwin" else 1024
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"what": "resident set of the process", "bytes": resident}
