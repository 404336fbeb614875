"""What a compiled program does on a device, counted in XLA's text of it.

Counted are the operations of matrix products, the bytes that go between the device's main memory
and its cores, the kernels that it starts, and what devices send each other. A loop's body counts as
often as it runs: so often as XLA says, or as its condition compares a counter with (`lax.scan`);
where neither is known, for its end is in the data, as often as the caller says. XLA's own cost
analysis counts a body once.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterable

from bidi.benchmarking.hlo_products import product_flops
from bidi.benchmarking.hlo_text import Computation, Instruction, integers, parse

# They move nothing of themselves.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"),
    *("partition-id", "replica-id", "while", "conditional", "call", "optimization-barrier"),
}
_FREE_CALLS = ("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound")
# TPUs let a collective go on while other fusions compute: each of these names it, and so does the
# one that waits for it. What it is, the first one says.
_BEGINS, _ENDS = "AsyncCollectiveStart", "AsyncCollectiveDone"
# They read of their first operand what they give back.
_SLICES = {"dynamic-slice", "slice", "gather", "slice-start", "dynamic-slice-start"}
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """Collectives of one kind.

    Attributes:
        count: how many.
        bytes: of the whole arrays that they reduce, gather or move, on one device.
        sent: bytes that a device sends by a ring over its group, the least there is.
    """

    count: float
    bytes: float
    sent: float


@dataclasses.dataclass(frozen=True)
class Work:
    """What a program does on one device.

    Attributes:
        flops: operations of matrix products, two for each multiplication and addition.
        bytes: between main memory and cores.
        kernels: fusions and whatever else stands by itself, one after the other.
        collectives: by kind.
        open_loops: loops in the text whose number of rounds the caller had to say.
        open_kernels: of `kernels`, those of one round of these loops, which are not nested.
    """

    flops: float = 0
    bytes: float = 0
    kernels: float = 0
    collectives: dict[str, Collective] = dataclasses.field(default_factory=dict)
    open_loops: int = 0
    open_kernels: float = 0

    @property
    def sent(self) -> float:
        """Bytes that a device sends."""
        return sum(collective.sent for collective in self.collectives.values())

    def __add__(self, other: "Work") -> "Work":
        kinds = self.collectives.keys() | other.collectives.keys()
        none = Collective(0, 0, 0)
        added = {}
        for kind in sorted(kinds):
            one, two = self.collectives.get(kind, none), other.collectives.get(kind, none)
            added[kind] = Collective(
                one.count + two.count, one.bytes + two.bytes, one.sent + two.sent
            )
        return Work(
            self.flops + other.flops,
            self.bytes + other.bytes,
            self.kernels + other.kernels,
            added,
            self.open_loops + other.open_loops,
            self.open_kernels + other.open_kernels,
        )

    def times(self, rounds: float) -> "Work":
        """The same, so often."""
        return dataclasses.replace(
            self,
            flops=rounds * self.flops,
            bytes=rounds * self.bytes,
            kernels=rounds * self.kernels,
            collectives={
                kind: Collective(rounds * one.count, rounds * one.bytes, rounds * one.sent)
                for kind, one in self.collectives.items()
            },
        )


def work(text: str, devices: int, open_rounds: float = 1) -> Work:
    """Counts a program's work.

    Args:
        text: of an optimised program, `compiled.as_text()`.
        devices: that it runs on.
        open_rounds: how often a loop runs whose number of rounds is not in the text.
    """
    return _Program(text, devices, open_rounds).work


class _Program:
    def __init__(self, text: str, devices: int, open_rounds: float):
        self._devices, self._open_rounds = devices, open_rounds
        self._computations, entry = parse(text)
        self._carried = _carried(self._computations.values())
        self._of = functools.cache(self._work_of)
        self.work = self._of(entry, False)

    def _work_of(self, name: str, fused: bool) -> Work:
        computation = self._computations[name]
        total = Work()
        for instruction in computation.instructions.values():
            total += self._work_here(computation, instruction, fused)
            total += self._work_called(instruction, fused)
        return total

    def _work_here(self, computation: Computation, one: Instruction, fused: bool) -> Work:
        flops, collectives = product_flops(computation, one), {}
        kind = one.opcode.removesuffix("-start")
        if kind in COLLECTIVES and one.name not in self._carried:
            collectives[kind] = self._collective(computation, one, kind)
        if fused or not _starts(one):
            return Work(flops, collectives=collectives)
        return Work(flops, self._bytes(computation, one), 1, collectives)

    def _work_called(self, one: Instruction, fused: bool) -> Work:
        if one.opcode == "while":
            rounds = self._rounds(one)
            inner = self._of(_named(one, "body"), fused)
            if rounds is not None:
                return inner.times(rounds)
            inner += self._of(_named(one, "condition"), fused)
            opened = Work(open_loops=1, open_kernels=inner.kernels)
            return inner.times(self._open_rounds) + opened
        if one.opcode == "conditional":
            # One of them runs: the one that does most.
            return max((self._of(name, fused) for name in one.called), key=_size)
        if one.opcode.removesuffix("-start") in COLLECTIVES:
            return Work()  # what it adds up with
        if one.opcode in ("fusion", "call") or one.opcode.endswith("-start"):
            fused = fused or one.opcode == "fusion"
            called = [name for name in one.called if name in self._computations]
            return sum((self._of(name, fused) for name in called), Work())
        return Work()

    def _rounds(self, loop: Instruction) -> float | None:
        known = re.search(r'known_trip_count"?:\s*\{\s*"?n"?\s*[:=]\s*"?(\d+)', loop.rest)
        if known:
            return int(known[1])
        condition = self._computations[_named(loop, "condition")]
        root = condition.instructions[condition.root]
        compared = root
        if root.opcode == "fusion":
            inner = self._computations[root.called[0]]
            compared = inner.instructions[inner.root]
        if compared.opcode != "compare" or "direction=LT" not in compared.rest:
            return None
        operands = [condition.instructions.get(operand) for operand in root.operands]
        limits = [one for one in operands if one is not None and one.opcode == "constant"]
        if len(limits) != 1:
            return None
        places = [re.search(r"index=(\d+)", one.rest) for one in operands if one is not None]
        step = max((self._step(loop, int(place[1])) for place in places if place), default=1)
        return math.ceil(int(limits[0].operands[0]) / step)

    def _step(self, loop: Instruction, place: int) -> int:
        """What a loop adds to its counter: more than 1 where XLA has made of two rounds one."""
        body = self._computations[_named(loop, "body")]
        added = body.instructions.get(body.instructions[body.root].operands[place])
        if added is None or added.opcode != "add":
            return 1
        operands = [body.instructions.get(operand) for operand in added.operands]
        steps = [int(o.operands[0]) for o in operands if o is not None and o.opcode == "constant"]
        return steps[0] if steps else 1

    def _collective(self, computation: Computation, one: Instruction, kind: str) -> Collective:
        size = _group_size(one.rest, self._devices)
        moved = sum(computation.bytes_of(operand) for operand in one.operands)
        if kind == "all-gather":
            moved *= size
        share = (size - 1) / size
        passes = {"all-reduce": 2 * share, "collective-permute": 1.0, "collective-broadcast": 1.0}
        return Collective(1, moved, moved * passes.get(kind, share))

    def _bytes(self, computation: Computation, one: Instruction) -> float:
        if one.opcode.endswith("-start"):
            return self._started_bytes(computation, one)
        if one.opcode == "fusion":
            return self._fusion_bytes(computation, one)
        written = sum(array.main_bytes for array in one.arrays)
        sources = [computation.arrays(operand) for operand in one.operands]
        if one.opcode in _SLICES:
            from_main = any(array.main_bytes for array in sources[0])
            return written + (sum(array.bytes for array in one.arrays) if from_main else 0)
        if (update := self._update_of(one)) is not None:
            return computation.bytes_of(update) * (1 + bool(written))
        return written + sum(array.main_bytes for arrays in sources for array in arrays)

    def _started_bytes(self, computation: Computation, one: Instruction) -> float:
        """Of a copy between memories: what is read in the one and written in the other."""
        kind = one.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            size = _group_size(one.rest, self._devices)
            written = {"all-gather": size, "reduce-scatter": 1 / size}.get(kind, 1)
            read = sum(computation.bytes_of(operand) for operand in one.operands)
            return read * (1 + written)
        if one.opcode not in ("copy-start", "slice-start", "dynamic-slice-start"):
            return 0  # what it calls is counted
        # (target, source, context) of a copy, ((source), target, context) of a slice
        target = one.arrays[0 if one.opcode == "copy-start" else 1]
        read = any(array.main_bytes for array in computation.arrays(one.operands[0]))
        return target.bytes * read + target.main_bytes

    def _fusion_bytes(self, computation: Computation, one: Instruction) -> float:
        inner = self._computations[one.called[0]]
        if inner.holds(_ENDS):
            return 0
        if inner.holds(_BEGINS):
            begun = [each for each in inner.instructions.values() if each.opcode in COLLECTIVES]
            return sum(array.bytes for each in begun for array in each.arrays) + sum(
                inner.bytes_of(operand) for each in begun for operand in each.operands
            )
        total = 0.0
        for place, operand in enumerate(one.operands):
            from_main = sum(array.main_bytes for array in computation.arrays(operand))
            if from_main:
                total += min(from_main, self._read_of(inner, inner.parameters[place]))
        root = inner.instructions[inner.root]
        written = [inner.instructions[name] for name in root.operands]
        results = written if root.opcode == "tuple" else [root]
        if len(results) != len(one.arrays):
            return total + sum(array.main_bytes for array in one.arrays)
        return total + sum(
            self._written_of(inner, result) if array.main_bytes else 0
            for result, array in zip(results, one.arrays, strict=True)
        )

    def _read_of(self, computation: Computation, name: str) -> float:
        """Bytes of a fusion's parameter that are read: all, unless only slices of it are."""
        whole = computation.bytes_of(name)
        total = 0.0
        for user in computation.users[name]:
            if user.opcode in _SLICES and user.operands[0] == name:
                total += sum(array.bytes for array in user.arrays)
            elif self._update_of(user) is not None and user.operands[0] == name:
                pass  # stays as it is but for the update
            elif user.opcode == "tuple" or user.name in self._carried:
                pass  # goes through as it is
            elif user.opcode == "bitcast":
                total += self._read_of(computation, user.name)
            elif user.opcode == "fusion":
                inner = self._computations[user.called[0]]
                places = [p for p, operand in enumerate(user.operands) if operand == name]
                total += sum(self._read_of(inner, inner.parameters[place]) for place in places)
            else:
                return whole
        return min(total, whole)

    def _written_of(self, computation: Computation, one: Instruction) -> float:
        """Bytes that a fusion writes of one result: an update in place writes the update alone."""
        if one.opcode == "parameter" or one.name in self._carried:
            return 0
        while one.opcode == "bitcast" and one.operands[0] in computation.instructions:
            one = computation.instructions[one.operands[0]]
        if (update := self._update_of(one)) is not None:
            return computation.bytes_of(update)
        return sum(array.bytes for array in one.arrays)

    def _update_of(self, one: Instruction) -> str | None:
        """What an instruction writes into its first operand, if it only replaces a part of that."""
        if one.opcode == "dynamic-update-slice":
            return one.operands[1]
        if one.opcode != "scatter" or len(one.operands) != 3:
            return None
        combined = self._computations[one.called[0]]
        root = combined.instructions[combined.root]
        return one.operands[2] if root.opcode == "parameter" else None


def _carried(computations: Iterable[Computation]) -> set[str]:
    """Names of the instructions that stand for a collective begun elsewhere."""
    by_channel: dict[str, list[tuple[str, bool]]] = {}
    for computation in computations:
        begins = computation.holds(_BEGINS)
        for one in computation.instructions.values():
            channel = re.search(r"channel_id=(\d+)", one.rest)
            if channel and one.opcode in COLLECTIVES:
                by_channel.setdefault(channel[1], []).append((one.name, begins))
    return {
        name
        for named in by_channel.values()
        if any(begins for _, begins in named)
        for name, begins in named
        if not begins
    }


def _starts(one: Instruction) -> bool:
    """Whether it is anything that a device does, and begins it."""
    if (
        one.opcode in _FREE
        or one.opcode == "async-start"
        or one.opcode.endswith(("-done", "-update"))
    ):
        return False
    return one.opcode != "custom-call" or not any(name in one.rest for name in _FREE_CALLS)


def _named(loop: Instruction, part: str) -> str:
    """The computation that is a loop's body or condition."""
    name = re.search(rf"{part}=%?([\w.\-]+)", loop.rest)
    assert name is not None, loop.rest
    return name[1]


def _size(work: Work) -> tuple[float, float]:
    return work.flops, work.bytes


def _group_size(attributes: str, devices: int) -> int:
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", attributes)
    if listed:
        return len(integers(listed[1]))
    # mesh['a'=2,'b'=8] {'b'}: along which axes
    meshed = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes)
    if meshed:
        sizes = {name: int(size) for name, size in re.findall(r"('\w+')=(\d+)", meshed[1])}
        # 'b':(1)4 is a part of b, four long
        named = re.findall(r"('\w+')(?::\(\d+\)(\d+))?", meshed[2])
        return math.prod(int(part) if part else sizes[name] for name, part in named)
    # [groups, size]<=[...], numbered in the order of the devices
    counted = re.search(r"replica_groups=\[\d+,(\d+)\]", attributes)
    return int(counted[1]) if counted else devices
