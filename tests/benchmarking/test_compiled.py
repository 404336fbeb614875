"""What is said of devices that are not there; compiling is shown in tests/test_compile.py."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bidi.benchmarking import compiled, hlo
from bidi.benchmarking.devices import CHIPS, Chip


def test_a_roofline_by_hand():
    chip = Chip(flops=100.0, memory=1.0, bandwidth=10.0, interconnect=5.0)
    sent = {"all-reduce": hlo.Collective(1, 10, 20), "all-gather": hlo.Collective(2, 10, 5)}
    roofline = compiled.Roofline.of(hlo.Work(flops=200.0, bytes=30.0, collectives=sent), chip)
    assert (roofline.compute, roofline.memory, roofline.interconnect) == (2.0, 3.0, 5.0)
    assert (roofline.seconds, roofline.bound) == (5.0, "interconnect")
    roofline = compiled.Roofline.of(hlo.Work(flops=200.0, bytes=30.0), chip)
    assert (roofline.seconds, roofline.bound) == (3.0, "memory")


def test_bytes_of_divided_leaves():
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("i",))
    divided = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("i"))
    tree = {
        "divided": jax.ShapeDtypeStruct((16, 3), jnp.bfloat16, sharding=divided),
        "whole": jax.ShapeDtypeStruct((5,), jnp.float32),
        "none": None,
    }
    assert compiled._bytes_each(tree) == 2 * 3 * 2 + 5 * 4


def test_chips_are_balanced_as_chips_are():
    """No slip of a power of ten: products for each byte, and bytes of memory for each of links."""
    for chip in CHIPS.values():
        assert 100 < chip.flops / chip.bandwidth < 1000
        assert 3 < chip.bandwidth / chip.interconnect < 11
        assert 10e9 < chip.memory < 150e9


class Refused:
    """A program that the compiler finds no room for, or cannot compile for another reason."""

    def __init__(self, message):
        self.message = message

    def compile(self, compiler_options):
        raise jax.errors.JaxRuntimeError(self.message)


class Device:
    platform, device_kind = "tpu", "TPU v5 lite"


def test_what_does_not_fit_is_said():
    message = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
        "hbm. Used 18.50G of 15.75G hbm. Exceeded hbm capacity by 2.75G.\nTotal hbm usage"
    )
    report = compiled._report(Refused(message), [Device()], {"parameters": 5}, 5)
    assert not report["fits"]
    assert report["memory"] == {"parameters": 5, "total": 18.5 * 2**30, "chip": 16e9}
    assert report["why"].endswith("Exceeded hbm capacity by 2.75G.")
    assert "work" not in report
    with pytest.raises(jax.errors.JaxRuntimeError, match="UNIMPLEMENTED"):
        compiled._report(Refused("UNIMPLEMENTED: this"), [Device()], {}, 0)


class Unreadable:
    """A program of a libtpu that is newer than jaxlib."""

    def compile(self, compiler_options):
        return self

    def memory_analysis(self):
        return types.SimpleNamespace(
            argument_size_in_bytes=7,
            output_size_in_bytes=6,
            alias_size_in_bytes=5,
            temp_size_in_bytes=20,
            generated_code_size_in_bytes=30,
        )

    def as_text(self):
        raise jax.errors.JaxRuntimeError("INTERNAL: should have 1 operands but sees 3")


def test_the_memory_of_a_program_that_cannot_be_read_is_known():
    # Of the parameters 4 bytes are no arguments of the program.
    report = compiled._report(Unreadable(), [Device()], {"parameters": 8, "prepared": 1}, 5)
    assert report["fits"]
    assert report["memory"]["batch"] == 7 - 5
    assert report["memory"]["total"] == 8 + 1 + 2 + 1 + 20 + 30
    assert report["why"].endswith("sees 3")
    assert "work" not in report
