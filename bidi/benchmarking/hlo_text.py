"""A compiled program's text, taken apart into computations and their instructions."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

# `name = type opcode(operands), attributes`
_NAMED = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (.*)$")
_HEADING = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_CALLED = re.compile(
    r"(?:calls|body|branch_computations|(?:true|false)_computation|to_apply)=(\{[^}]*\}|%?[\w.\-]+)"
)


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of an instruction's result."""

    dtype: str
    shape: tuple[int, ...]
    layout: str

    @property
    def bytes(self) -> float:
        """Of all elements."""
        bits = re.search(r"\d+", self.dtype)
        width = int(bits[0]) / 8 if bits else float(self.dtype == "pred")
        return width * math.prod(self.shape)

    @property
    def main_bytes(self) -> float:
        """0 where it lies in a core's own memory, which TPUs mark by `S(1)` and above."""
        return 0 if re.search(r"S\([1-9]", self.layout) else self.bytes


@dataclasses.dataclass(frozen=True)
class Instruction:
    """`name = arrays opcode(operands)rest`; a constant or parameter has its number as operand."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    rest: str

    @property
    def called(self) -> list[str]:
        """The computations that it calls, but for a loop's condition."""
        return [
            name.strip().lstrip("%")
            for names in _CALLED.findall(self.rest)
            for name in names.strip("{}").split(",")
        ]


@dataclasses.dataclass
class Computation:
    """Instructions by name, in order; the root gives the result."""

    instructions: dict[str, Instruction] = dataclasses.field(default_factory=dict)
    root: str = ""

    @functools.cached_property
    def parameters(self) -> dict[int, str]:
        """Names by number."""
        found = (one for one in self.instructions.values() if one.opcode == "parameter")
        return {int(one.operands[0]): one.name for one in found}

    def arrays(self, operand: str) -> tuple[Array, ...]:
        """What an instruction gives; nothing, where it stands elsewhere."""
        found = self.instructions.get(operand)
        return found.arrays if found else ()

    def bytes_of(self, operand: str) -> float:
        """Of all its arrays."""
        return sum(array.bytes for array in self.arrays(operand))

    def holds(self, target: str) -> bool:
        """Whether there is a custom call of this target."""
        return any(
            one.opcode == "custom-call" and f'"{target}"' in one.rest
            for one in self.instructions.values()
        )

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """By name, the instructions that take it as an operand."""
        users: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for operand in set(instruction.operands) & users.keys():
                users[operand].append(instruction)
        return users


def integers(text: str) -> list[int]:
    """Of a list between commas."""
    return [int(number) for number in text.split(",") if number]


def braces(text: str, before: str) -> str:
    """What stands in the braces behind `before`, empty where there are none."""
    found = re.search(re.escape(before) + r"\{([^}]*)\}", text)
    return found[1] if found else ""


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """Computations by name, and the entry's name."""
    computations: dict[str, Computation] = {}
    entry, current = "", Computation()
    for line in text.splitlines():
        if heading := _HEADING.match(line):
            current = computations[heading[2]] = Computation()
            entry = heading[2] if heading[1] else entry
        elif named := _NAMED.match(line):
            instruction = _instruction(named[2], re.sub(r"/\*.*?\*/", "", named[3]))
            current.instructions[named[2]] = instruction
            current.root = named[2] if named[1] else current.root
    return computations, entry


def _instruction(name: str, text: str) -> Instruction:
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    opcode, _, _ = text[end:].strip().partition("(")
    start = text.index("(", end)
    stop = _closing(text, start)
    arrays = tuple(
        Array(dtype, tuple(integers(shape.replace("<=", ""))), layout)
        for dtype, shape, layout in _ARRAY.findall(text[:end])
    )
    operands = tuple(_operands(text[start + 1 : stop - 1]))
    return Instruction(name, opcode.strip(), arrays, operands, text[stop:])


def _operands(text: str) -> Iterator[str]:
    """Names, whether their types stand before them or not; a constant's or parameter's number."""
    if "%" in text:
        yield from re.findall(r"%([\w.\-]+)", text)
    elif text:
        yield from (part.split()[-1] for part in text.split(",") if part.strip())


def _closing(text: str, start: int) -> int:
    """Behind the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if not depth:
            return place + 1
    raise ValueError(f"no closing parenthesis: {text[:80]}")
