"""What the devices can do: the rate of a plain matrix product, known peaks, memory.

Letters: N rows, D model, F feed-forward.
"""

import resource
import sys
import time

import jax
import jax.numpy as jnp

# FLOP/s of a device in bfloat16 without sparsity, by the makers' data sheets; the longest prefix
# of `device_kind` counts.
_PEAKS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
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
