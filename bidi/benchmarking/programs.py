"""Compiled programs: the memory they take, and where in them the time goes."""

import contextlib
import pathlib
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import backend

from bidi.errors import UserError

# Parts of a search by what stands in an operation's name, the first that fits; see `parts`.
_PARTS = {
    "encoder": r"/\w+\.start/",
    "bookkeeping": r"/bookkeeping/",
    "top-k": r"/top_k",
    "projection": r"/projection/|d,vd->|log_softmax",
    "attention": r"/(self_attention|source_attention|top|attention)/",
    "recurrence": r"/recurrence/",
    "feed-forward": r"/(vmap\()?feedforward[)/]",
}
REST = "rest"

# A moment in which another process has the core falls on some operation.
_TRACED_RUNS = 3

# `%name = type opcode(%operand, ...), metadata={op_name="..." ...}` in XLA's text of a program.
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%([\w.\-]+) = (.*)$", re.MULTILINE)
_OPERATION = re.compile(r'op_name="([^"]*)"')
_CONTAINER = re.compile(r" (?:while|conditional|call)\(")


@contextlib.contextmanager
def watch() -> Iterator[list[Any]]:
    """The list given holds, after leaving, the executables that were compiled within."""
    client = backend.get_backend()
    compiled: list[Any] = []
    before = client.live_executables()  # held: no other object may get one's identity meanwhile
    yield compiled
    known = {id(executable) for executable in before}
    compiled += [new for new in client.live_executables() if id(new) not in known]


def memory(executables: list[Any]) -> dict[str, int]:
    """Bytes on each device of the executable that needs most: what it reads, and works in."""
    stats = [executable.get_compiled_memory_stats() for executable in executables]
    arguments, temporary = max(
        ((one.argument_size_in_bytes, one.temp_size_in_bytes) for one in stats), key=sum
    )
    return {"arguments": arguments, "temporary": temporary}


def time_shares(run: Callable[[], object]) -> dict[str, float]:
    """How a search's time on the devices is shared out among the parts of its program.

    Args:
        run: the search, which is the largest program that its first call compiles.

    Returns:
        Shares that sum to 1, of 'attention', 'projection' and so on, and of the `REST`.

    Raises:
        UserError: the backend's profiler names no operations.
    """
    with watch() as compiled:
        run()
    program = max(
        (module for executable in compiled for module in executable.hlo_modules()),
        key=lambda module: len(module.to_string()),
    )
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory, profiler_options=options):
            for _ in range(_TRACED_RUNS):
                run()
        nanoseconds = _nanoseconds(pathlib.Path(directory), program.name)
    by_part = parts(program.to_string())
    total: Counter[str] = Counter()
    for instruction, its_nanoseconds in nanoseconds.items():
        if instruction in by_part:
            total[by_part[instruction]] += its_nanoseconds
    if not total:
        raise UserError(
            f"the profiler of {jax.default_backend()} tells nothing of single operations; "
            "measure without --profile"
        )
    return {part: total[part] / total.total() for part in (*_PARTS, REST)}


def parts(text: str) -> dict[str, str]:
    """The part of a search that each instruction belongs to.

    An instruction without a name from the model's code was put in by XLA: it counts to what it
    reads. Loops and calls are left out: their instructions stand for themselves.

    Args:
        text: of an optimised program.
    """
    lines = dict(_INSTRUCTION.findall(text))
    return {
        name: _part(_operation(name, lines))
        for name, line in lines.items()
        if not _CONTAINER.search(line)
    }


def _operation(name: str, lines: dict[str, str]) -> str:
    """The name, in the model's code, of an instruction or of the first it reads that has one."""
    while name in lines:
        if found := _OPERATION.search(lines[name]):
            return found[1]
        operand = re.search(r"%([\w.\-]+)", lines[name])
        name = operand[1] if operand else ""
    return ""


def _part(operation: str) -> str:
    return next((part for part, sign in _PARTS.items() if re.search(sign, operation)), REST)


def _nanoseconds(directory: pathlib.Path, module: str) -> Counter[str]:
    """Time in each instruction of a program, over all devices, in the trace that lies there."""
    total: Counter[str] = Counter()
    for path in directory.rglob("*.xplane.pb"):
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            for event in (event for line in plane.lines for event in line.events):
                stats = dict(event.stats)
                if stats.get("hlo_module") == module and "hlo_op" in stats:
                    total[str(stats["hlo_op"])] += event.duration_ns
    return total
