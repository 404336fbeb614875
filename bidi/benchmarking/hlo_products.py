"""Operations of the matrix products in a compiled program's text."""

import itertools
import math
import re

from bidi.benchmarking.hlo_text import Array, Computation, Instruction, braces, integers

# None is known to be made of the programs that are counted here.
_UNCOUNTED = re.compile(r'custom_call_target="[^"]*(?:gemm|matmul|cudnn)')


def product_flops(computation: Computation, one: Instruction) -> float:
    """Two for each multiplication and addition; 0 for what is no product.

    Raises:
        ValueError: it is a product, by a call whose operations are not counted.
    """
    if one.opcode == "custom-call" and _UNCOUNTED.search(one.rest):
        raise ValueError(f"a product whose operations are not counted: {one.name}{one.rest}")
    if one.opcode not in ("dot", "convolution"):
        return 0.0
    lhs, rhs = (computation.arrays(operand)[0] for operand in one.operands[:2])
    return _dot_flops(one, lhs) if one.opcode == "dot" else _convolution_flops(one, lhs, rhs)


def _dot_flops(one: Instruction, lhs: Array) -> float:
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.rest)
    axes = integers(contracted[1]) if contracted else []
    return 2.0 * math.prod(one.arrays[0].shape) * math.prod(lhs.shape[axis] for axis in axes)


def _convolution_flops(one: Instruction, lhs: Array, rhs: Array) -> float:
    """As XLA counts them: TPUs' matrix products are convolutions, batch axes spatial ones."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.rest)
    assert labels is not None, one.rest
    left, right, out = labels.groups()
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", (braces(one.rest, "window="))))
    spatial = sorted(label for label in left if label.isdigit())
    given = {key: value.split("x") for key, value in window.items()}
    products = 1
    for place, label in enumerate(spatial):
        low = int(given["pad"][place].split("_")[0]) if "pad" in given else 0
        stride, base, kernel = (
            int(given[key][place]) if key in given else 1
            for key in ("stride", "lhs_dilate", "rhs_dilate")
        )
        inputs, taps = lhs.shape[left.index(label)], rhs.shape[right.index(label)]
        places = one.arrays[0].shape[out.index(label)]
        products *= _met(inputs, taps, places, low, stride, base, kernel)
    batch, features = lhs.shape[left.index("b")], rhs.shape[right.index("i")]
    groups = re.search(r"batch_group_count=(\d+)", one.rest)
    batch //= int(groups[1]) if groups else 1
    return 2.0 * batch * features * rhs.shape[right.index("o")] * products


def _met(inputs: int, taps: int, places: int, low: int, stride: int, base: int, kernel: int) -> int:
    """Pairs of a place of the result and a tap of the kernel that meet an input."""
    met = 0
    for place, tap in itertools.product(range(places), range(taps)):
        at, apart = divmod(place * stride - low + tap * kernel, base)
        met += not apart and 0 <= at < inputs
    return met
