"""How many instructions a kernel issues: its SASS, with each loop's body times its trips.

    parse(text)                 the instructions up to the exit, and where the labels are
    find_loops(program)         what a branch back encloses
    trips(program, loop, ...)   how often it runs: its counter's start, step and end, read from the instructions
    issued(text, ctas)          all of it, for one thread of each CTA, by kinds of instructions

A counter starts at a constant or at the CTA's number (a CTA is a thread block; those of a persistent kernel walk over the
tiles), grows by a constant, and is compared with a constant: sizes are constants in our kernels. What isn't so is refused,
never taken for one trip. What is assumed: a branch forward is not taken, so that both sides of a condition count; a wait
for a barrier succeeds at once; a loop is entered. What lies behind the exit (a wait that has to wait, rare cases of a square
root) doesn't count.
"""

from __future__ import annotations

import dataclasses
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

_LINE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][A-Z0-9_]*(?:\.\w+)*)\s*([^;]*);")
_LABEL = re.compile(r"(\.L_\w+):")
_REGISTER = re.compile(r"U?R\d+$")
_NUMBER = re.compile(r"-?0x[0-9a-f]+$")
_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "LT": operator.lt, "LE": operator.le, "GT": operator.gt, "GE": operator.ge, "EQ": operator.eq, "NE": operator.ne,
}  # fmt: skip
_SWAPPED = {"LT": "GT", "LE": "GE", "GT": "LT", "GE": "LE", "EQ": "EQ", "NE": "NE"}
_MOVES = ("MOV", "MOV.64", "UMOV", "UMOV.64", "R2UR", "IMAD.MOV.U32", "IMAD.U32", "CS2R")
_ADDS = ("IADD3", "UIADD3", "IADD", "IADD.64", "UIADD3.64", "VIADD", "IMAD.IADD")
_ZEROS = ("RZ", "URZ", "SRZ")
_PREDICATE = re.compile(r"!?U?P(\d|T)$")
_WAITS = ("SYNCS", "UTCATOMSWS", "ATOM")
"""Instructions whose predicate says that what a thread waits for has come."""
BF16_INSTRUCTIONS = ("HMMA", "HGMMA")
"""Kinds of matrix instructions of bf16 and float16."""
CTA = "cta"
"""The start of a counter that starts at the number of the CTA."""
MOST_TRIPS = 1 << 22


class UnknownTrips(Exception):
    """A loop whose trips the instructions don't tell."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """predicate: as "!P0", empty without one. opcode: with its modifiers. operands: as they are written."""

    predicate: str
    opcode: str
    operands: tuple[str, ...]

    @cached_property
    def family(self) -> str:
        return self.opcode.partition(".")[0]

    def writes(self, register: str) -> bool:
        """Whether it may change a register; stores and branches write none, wide results take up to four."""
        if not self.operands or self.family in ("BRA", "ST", "STG", "STS", "STL", "RED"):
            return False
        first = self.operands[0].partition(".")[0]
        if first == register:
            return True
        kind, number = re.match(r"(U?R)(\d+)$", register).groups()  # type: ignore[union-attr]
        found = re.match(r"(U?R)(\d+)$", first)
        if not found or found[1] != kind:
            return False
        wide = re.search(r"\.(64|WIDE)", self.opcode) or self.opcode == "CS2R"
        width = 4 if ".128" in self.opcode else 2 if wide else 1
        return 0 < int(number) - int(found[2]) < width


@dataclasses.dataclass(frozen=True)
class Program:
    """instructions: up to the exit, without NOP. labels: at which of them each label lies."""

    instructions: tuple[Instruction, ...]
    labels: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Loop:
    """Instructions first to last, the branch back. inner: the loops right inside."""

    first: int
    last: int
    inner: tuple[Loop, ...] = ()

    def holds(self, at: int) -> bool:
        """Whether an instruction is in it."""
        return self.first <= at <= self.last


def parse(text: str) -> Program:
    """The program that nvdisasm shows, to its exit."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif found := _LINE.search(line):
            predicate, opcode, operands = found.groups()
            if opcode != "NOP":
                instructions.append(Instruction(predicate or "", opcode, _operands(operands)))
            if opcode == "EXIT" and not predicate:
                break
    return Program(tuple(instructions), labels)


def _operands(text: str) -> tuple[str, ...]:
    """Operands without the marks that a value is kept (`R5.reuse`)."""
    return tuple(part.strip().replace(".reuse", "") for part in text.split(",")) if text.strip() else ()


def find_loops(program: Program) -> tuple[Loop, ...]:
    """The outermost loops, in order. Two branches back to one label are one loop, to the later branch."""
    ends: dict[int, int] = {}
    for at, instruction in enumerate(program.instructions):
        if instruction.family == "BRA":
            label = re.search(r"`\((\.L_\w+)\)", ",".join(instruction.operands))
            first = program.labels.get(label[1], at + 1) if label else at + 1
            if first <= at:
                ends[first] = at
    return _nest(sorted(ends.items(), key=lambda span: (span[0], -span[1])))


def _nest(spans: Sequence[tuple[int, int]]) -> tuple[Loop, ...]:
    loops, rest = [], list(spans)
    while rest:
        first, last = rest.pop(0)
        inside = [span for span in rest if span[0] <= last]
        if any(end > last for _, end in inside):
            raise UnknownTrips("loops that overlap")
        rest = rest[len(inside) :]
        loops.append(Loop(first, last, _nest(inside)))
    return tuple(loops)


def issued(text: str, ctas: int, untaken: Iterable[str] = ()) -> Counter[str]:
    """Instructions that one thread of each of `ctas` CTAs issues, summed over them, by their kind ("IADD3").

    untaken: kinds of matrix instructions; a loop that has one is on a path that is not taken, and counts nothing.
    Raises `UnknownTrips`.
    """
    program = parse(text)
    if any(one.family in ("USETMAXREG", "BRX", "BRXU") for one in program.instructions):
        raise UnknownTrips("warps that run different parts of the code")
    whole = Loop(0, len(program.instructions) - 1, find_loops(program))
    return _issued(program, whole, ctas, ctas, frozenset(untaken))


def _issued(program: Program, around: Loop, runs: int, ctas: int, untaken: frozenset[str]) -> Counter[str]:
    """What a loop's body, or the whole program, issues that runs `runs` times in all CTAs together."""
    counted: Counter[str] = Counter()
    for at in range(around.first, around.last + 1):
        if not any(loop.holds(at) for loop in around.inner):
            counted[program.instructions[at].family] += runs
    for loop in around.inner:
        kinds = {one.family for one in program.instructions[loop.first : loop.last + 1]}
        if not kinds & untaken:
            counted += _issued(program, loop, trips(program, loop, around, ctas, runs), ctas, untaken)
    return counted


def trips(program: Program, loop: Loop, around: Loop, ctas: int, runs: int) -> int:
    """How often a loop's body runs in all CTAs together. around: the loop that it is in, or the whole program, which runs
    `runs` times. Raises `UnknownTrips`."""
    code = program.instructions
    branch = code[loop.last]
    condition = branch.predicate or next((o for o in branch.operands if _PREDICATE.match(o)), "")
    if not condition:
        raise UnknownTrips("a loop that is left from its middle")
    negated, predicate, at = condition.startswith("!"), condition.lstrip("!"), loop.last
    while True:
        found = _set_before(code, predicate, loop.first, at)
        if found is None:
            if _second_is_last(code, predicate, loop, around, at, negated):
                return 2 * runs
            raise UnknownTrips(f"a loop whose condition {predicate} is not set in it")
        at, compare = found, code[found]
        copied = [o for o in compare.operands[2:] if _PREDICATE.match(o) and o not in ("PT", "UPT")]
        if compare.opcode in ("PLOP3.LUT", "UPLOP3.LUT") and compare.operands[-2:] == _ALL and len(copied) == 1:
            predicate = copied[0]
        elif compare.opcode.endswith(".EX") and copied[-1:] == [compare.operands[-1]]:
            predicate = copied[-1]  # the upper halves, both 0; the lower ones decide
        else:
            break
        negated ^= predicate.startswith("!")
        predicate = predicate.lstrip("!")
    if compare.family.startswith(_WAITS):
        return runs
    relation, counter, end = _comparison(code, compare, loop, around)
    counter, offset = _trace(code, counter, loop.first, at)
    same, step = _trace(code, counter, loop.first, loop.last)
    if same != counter or not step:
        raise UnknownTrips(f"a loop whose counter {counter} doesn't grow by a constant")
    start, more = _start(code, counter, loop, around)
    goes_on = lambda value: _COMPARE[relation](value, end) != negated  # noqa: E731
    if start != CTA:
        return runs * _count(more + offset, step, goes_on)
    if runs != ctas:
        raise UnknownTrips("a loop over CTAs inside of a loop")
    return sum(_count(cta + more + offset, step, goes_on) for cta in range(ctas))


def _second_is_last(
    code: Sequence[Instruction], predicate: str, loop: Loop, around: Loop, at: int, negated: bool
) -> bool:
    """Whether a loop of two trips is told by a flag: what `at` reads is set before the loop to go on, later in it not to."""
    before = _set_before(code, predicate, around.first, loop.first)
    after = _set_before(code, predicate, at, loop.last)
    if before is None or after is None:
        return False
    values = [_flag(code[before]), _flag(code[after])]
    return values == [not negated, negated]


def _flag(instruction: Instruction) -> bool | None:
    """What an instruction sets a predicate to, if that is a constant."""
    if instruction.predicate or not re.match(r"U?PLOP3\.LUT$", instruction.opcode):
        return None
    if not all(o in ("PT", "UPT") for o in instruction.operands[1:-2]):
        return None
    return bool(int(instruction.operands[-2], 16) >> 7)  # all three inputs are true


_ALL = ("0x80", "0x0")
"""The table of a PLOP3 that is the "and" of its inputs."""


def _comparison(code: Sequence[Instruction], compare: Instruction, loop: Loop, around: Loop) -> tuple[str, str, int]:
    """A comparison as relation, counter and constant."""
    text = f"{compare.opcode} {', '.join(compare.operands)}"
    found = re.match(r"U?ISETP\.(LT|LE|GT|GE|EQ|NE)(\.U32|\.U64|\.S64)?\.AND$", compare.opcode)
    values = [o for o in compare.operands[2:] if o not in ("PT", "UPT")]
    if not found or compare.predicate or len(values) != 2:
        raise UnknownTrips(f"a loop whose end is decided by {text}")
    relation = found[1]
    if _constant(code, values[0], loop, around) is not None:
        values, relation = values[::-1], _SWAPPED[relation]
    end = _constant(code, values[1], loop, around)
    if end is None or not _REGISTER.match(values[0]):
        raise UnknownTrips(f"a loop whose end is not a constant: {text}")
    return relation, values[0], end


def _count(value: int, step: int, goes_on: Callable[[int], bool]) -> int:
    """Trips of a loop that tests after its body."""
    for count in range(1, MOST_TRIPS):
        if not goes_on(value):
            return count
        value += step
    raise UnknownTrips("a loop whose counter never meets its end")


def _set_before(code: Sequence[Instruction], predicate: str, first: int, at: int) -> int | None:
    """The last instruction before `at`, from `first` on, that sets a predicate."""
    for index in range(at - 1, first - 1, -1):
        set_here = code[index].operands[: 1 if code[index].family.startswith("VOTE") else 2]
        if predicate in set_here and code[index].family != "BRA":
            return index
    return None


def _step(instruction: Instruction) -> tuple[str, int] | None:
    """What a move or an addition of a constant writes: a register, "" for none, plus a constant."""
    values = [o for o in instruction.operands[1:] if not _PREDICATE.match(o) and o not in _ZEROS]
    if instruction.opcode == "IMAD.IADD":
        values.remove("0x1")
    if instruction.opcode not in (*_MOVES, *_ADDS):
        return None
    registers = [o for o in values if _REGISTER.match(o)]
    numbers = [int(o, 16) for o in values if _NUMBER.match(o)]
    if len(registers) + len(numbers) != len(values) or len(registers) > 1:
        return None
    return (registers[0] if registers else "", sum(map(_signed, numbers)))


def _signed(number: int) -> int:
    return number - (1 << 32) if number >= 1 << 31 else number


def _trace(code: Sequence[Instruction], register: str, first: int, at: int) -> tuple[str, int]:
    """A register before instruction `at`, as a register at `first` plus a constant; the register is "" for a constant."""
    offset = 0
    while register and at > first:
        at -= 1
        if code[at].writes(register):
            step = _step(code[at])
            if step is None or code[at].predicate:
                raise UnknownTrips(f"a loop whose counter is set by {code[at].opcode}")
            register, offset = step[0], offset + step[1]
    return register, offset


def _start(code: Sequence[Instruction], register: str, loop: Loop, around: Loop) -> tuple[str, int]:
    """A loop's counter at its start: `CTA` or "", and a constant to add."""
    offset, at = 0, loop.first
    while at > around.first:
        at -= 1
        if not code[at].writes(register):
            continue
        if code[at].family in ("S2R", "S2UR") and code[at].operands[1] == "SR_CTAID.X":
            return CTA, offset
        step = _step(code[at])
        if step is None or code[at].predicate:
            raise UnknownTrips(f"a loop whose counter starts at a result of {code[at].opcode}")
        register, offset = step[0], offset + step[1]
        if not register:
            return "", offset
    raise UnknownTrips(f"a loop whose counter {register} starts outside of the loop around it")


def _constant(code: Sequence[Instruction], operand: str, loop: Loop, around: Loop) -> int | None:
    """An operand's value if it is a constant all through the loop."""
    if operand in _ZEROS:
        return 0
    if _NUMBER.match(operand):
        return _signed(int(operand, 16))
    if not _REGISTER.match(operand) or any(one.writes(operand) for one in code[loop.first : loop.last + 1]):
        return None
    try:
        start, value = _start(code, operand, loop, around)
    except UnknownTrips:
        return None
    return None if start == CTA else value
