"""What devices can do.

Letters: N rows, D model.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bidi.benchmarking import devices


@pytest.mark.parametrize(
    ("kind", "dtype", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989e12),
        ("NVIDIA H100 PCIe", "bfloat16", 756e12),
        ("NVIDIA H200", "bfloat16", 989e12),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312e12),
        ("TPU v4", "bfloat16", 275e12),
        ("TPU v5 lite", "bfloat16", 197e12),
        ("TPU v5", "bfloat16", 459e12),
        ("TPU v5p", "bfloat16", 459e12),
        ("TPU v6 lite", "bfloat16", 918e12),
        ("NVIDIA H100 80GB HBM3", "float32", None),
        ("cpu", "bfloat16", None),
    ],
)
def test_known_peaks(kind, dtype, peak):
    assert devices.peak_flops(kind, dtype) == peak


def test_a_rate_is_operations_over_time(monkeypatch):
    """A clock by which every call takes 3 s, longer than a measurement must be."""
    clock = itertools.count(step=3)
    monkeypatch.setattr(devices.time, "perf_counter", lambda: next(clock))
    product = devices.Product(5, 4, 6, jnp.dtype("float32"))
    there_and_back = 2 * 2 * 5 * 4 * 6
    assert product.rate() == jax.local_device_count() * there_and_back / 3


def test_products_are_repeated_until_they_take_long_enough(monkeypatch):
    """A clock by which a product takes 10 ms: 20 of them are a measurement."""
    now, runs = [0.0], []

    def perf_counter():
        return now[0]

    def there_and_back(x, there, back, times):
        runs.append(times)
        now[0] += 0.01 * times
        return x

    monkeypatch.setattr(devices.time, "perf_counter", perf_counter)
    monkeypatch.setattr(devices.jax, "pmap", lambda *_, **__: there_and_back)
    product = devices.Product(5, 4, 6, jnp.dtype("float32"))
    assert product.rate() == pytest.approx(jax.local_device_count() * 2 * 2 * 5 * 4 * 6 / 0.01)
    assert 20 <= runs[-1] <= 25


def test_there_and_back():
    rng = np.random.default_rng(0)
    x_ND, there, back = (
        rng.standard_normal(shape).astype(np.float32) for shape in ((5, 4), (4, 6), (6, 4))
    )
    expected = x_ND
    for _ in range(3):
        expected = expected @ there @ back
    found = devices._there_and_back(x_ND, there, back, 3)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_memory_grows_with_what_is_held():
    before = devices.peak_memory()
    held = np.ones(200_000_000, np.uint8)
    after = devices.peak_memory()
    assert before["what"] == "resident set of the process"
    assert after["bytes"] >= held.nbytes
    assert after["bytes"] >= before["bytes"] > 50_000_000


def test_memory_of_devices_that_tell(monkeypatch):
    class Device:
        def __init__(self, peak):
            self.peak = peak

        def memory_stats(self):
            return {"peak_bytes_in_use": self.peak}

    monkeypatch.setattr(devices.jax, "devices", lambda: [Device(3), Device(7)])
    assert devices.peak_memory() == {"what": "the fullest device", "bytes": 7}
