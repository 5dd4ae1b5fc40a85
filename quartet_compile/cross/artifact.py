"""What cross compilation gives: the generated modules, their kernels compiled for the target, and predicted times."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..report.report import Report
from .targets import Target

NAME_WIDTH = 48


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kernel:
    """A Triton kernel of the generated modules, compiled for the target; nothing of it ran.

    op, number_format: of a kernel of ours, as "scaled_mm" and "mxfp4"; empty for Inductor's own.
    mma: kinds of matrix instructions and how often each is in the PTX; conversions: those to E2M1.
    registers, stack_bytes: a thread. shared_bytes, tmem_columns, threads: a block.
    launches: how often each graph launches it.
    bytes, operations, instructions: of all its launches together, and of all threads; operations is None where they are
    not known, instructions where there is a loop, or the kernel is not ours.
    predicted_seconds: of all its launches; bound: "memory", "issue" (of instructions), or the number format whose rate
    bounds it.
    failures: why it would not run, or not as it should. notes: what is worth knowing.
    """

    name: str
    source: str
    op: str = ""
    number_format: str = ""
    ptx: str = ""
    cubin: bytes = b""
    mma: Counter[str] = dataclasses.field(default_factory=Counter)
    conversions: Counter[str] = dataclasses.field(default_factory=Counter)
    registers: int = 0
    stack_bytes: int = 0
    shared_bytes: int = 0
    tmem_columns: int = 0
    threads: int = 0
    launches: Mapping[str, int] = dataclasses.field(default_factory=dict)
    bytes: int = 0
    operations: int | None = 0
    instructions: int | None = None
    predicted_seconds: float | None = None
    bound: str = ""
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class LibraryCall:
    """Calls of one op that no generated kernel does: a matmul of cuBLAS, FlashAttention, a reference op of ours.

    kind: "extern (library)", "extern (reference op)" (plain PyTorch, many kernels: no prediction) or "extern (CPU)".
    The rest as in `Kernel`.
    """

    name: str
    kind: str
    launches: Mapping[str, int]
    bytes: int
    operations: int | None
    predicted_seconds: float | None
    bound: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Module:
    """The wrapper module that Inductor generated for one graph.

    graph: as "forward 0", "backward 0", "inference 0". constants: tensors that the source reads by name.
    """

    graph: str
    source: str
    constants: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Artifact:
    """A model compiled for a GPU that isn't there: compiled, not run; every time in it is predicted.

    report: what was rewritten, as `explain` says it.
    """

    target: Target
    kernels: tuple[Kernel, ...]
    library_calls: tuple[LibraryCall, ...]
    modules: tuple[Module, ...]
    report: Report

    @property
    def graphs(self) -> list[str]:
        """The names of the graphs."""
        return [module.graph for module in self.modules]

    @property
    def failures(self) -> list[str]:
        """One line for each thing that is wrong with a kernel."""
        return [f"{kernel.name}: {failure}" for kernel in self.kernels for failure in kernel.failures]

    def __str__(self) -> str:
        return "\n".join([*_table(self), "", *_summary(self)])

    def to_json(self, *, text: bool = False) -> str:
        """Everything as JSON, without cubins; text: with the sources and the PTX too."""
        texts = () if text else ("source", "ptx")
        data = {
            "target": dataclasses.asdict(self.target),
            "kernels": [_plain(kernel, without=("cubin", *texts)) for kernel in self.kernels],
            "library_calls": [_plain(call) for call in self.library_calls],
            "modules": [_plain(module, without=("constants", *texts)) for module in self.modules],
            "report": dataclasses.asdict(self.report),
            "failures": self.failures,
        }
        return json.dumps(data, indent=1)

    def write(self, folder: str | pathlib.Path) -> None:
        """Write the modules (`forward_0.py`) and each kernel's source, PTX and cubin to a folder."""
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for module in self.modules:
            (folder / f"{module.graph.replace(' ', '_')}.py").write_text(module.source)
        for index, kernel in enumerate(self.kernels):
            stem = f"{index:02}_{kernel.name[:120]}"
            (folder / f"{stem}.py").write_text(kernel.source)
            (folder / f"{stem}.ptx").write_text(kernel.ptx)
            (folder / f"{stem}.cubin").write_bytes(kernel.cubin)


def _plain(item: Any, without: Sequence[str] = ()) -> dict[str, Any]:
    return {field.name: getattr(item, field.name) for field in dataclasses.fields(item) if field.name not in without}


_COLUMNS = ("kernel", "graph", "runs", "matrix instructions", "regs", "stack", "shared", "tmem", "MB", "Gop",
            "predicted us", "bound by")  # fmt: skip
_LEFT = {0, 1, 3, 11}


def _table(artifact: Artifact) -> list[str]:
    rows: list[tuple[str, ...]] = [_COLUMNS]
    for kernel in artifact.kernels:
        numbers = (kernel.registers, kernel.stack_bytes, kernel.shared_bytes, kernel.tmem_columns)
        mma = ", ".join(f"{count} {kind}" for kind, count in kernel.mma.items())
        rows.append((*_head(kernel), mma, *map(str, numbers), *_tail(kernel)))
    for call in artifact.library_calls:
        rows.append((*_head(call), call.kind, "", "", "", "", *_tail(call)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = [
        "  ".join(
            cell.ljust(width) if column in _LEFT else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    return lines


def _head(item: Kernel | LibraryCall) -> tuple[str, str, str]:
    op = f"{item.op} {item.number_format}: " if isinstance(item, Kernel) and item.op else ""
    name = op + item.name
    name = name if len(name) <= NAME_WIDTH else f"{name[: NAME_WIDTH - 1]}…"
    return name, ", ".join(item.launches), str(sum(item.launches.values()))


def _tail(item: Kernel | LibraryCall) -> tuple[str, str, str, str]:
    operations = "?" if item.operations is None else f"{item.operations / 1e9:.2f}" if item.operations else ""
    seconds = "?" if item.predicted_seconds is None else f"{item.predicted_seconds * 1e6:.2f}"
    return f"{item.bytes / 1e6:.2f}", operations, seconds, item.bound


def _summary(artifact: Artifact) -> list[str]:
    target = artifact.target
    rates = ", ".join(f"{name} {rate / 1e12:g}" for name, rate in target.rates.items())
    lines = [
        f"{len(artifact.kernels)} kernels compiled for {target.name}, not run. Times are predicted: the longest of bytes, "
        "matrix operations and",
        f"instructions at the rates of one {target.chip}: {target.bandwidth / 1e12:g} TB/s; dense TFLOP/s {rates}; "
        f"{target.instruction_rate / 1e12:g} T instructions/s.",
    ]
    items: list[Kernel | LibraryCall] = [*artifact.kernels, *artifact.library_calls]
    for graph in artifact.graphs:
        known, unknown = _seconds(items, graph)
        more = f", and {unknown} calls without a prediction" if unknown else ""
        lines.append(f"{graph}: {known * 1e6:.1f} us predicted{more}.")
    lines += [f"Note: {kernel.name}: {note}" for kernel in artifact.kernels for note in kernel.notes]
    lines += [f"Graph break at {line}" for line in artifact.report.eager]
    lines += [f"FAILED: {failure}" for failure in artifact.failures]
    return lines


def _seconds(items: Iterable[Kernel | LibraryCall], graph: str) -> tuple[float, int]:
    """A graph's predicted seconds, each item's spread evenly over its launches, and how many launches have none."""
    known, unknown = 0.0, 0
    for item in items:
        launches = item.launches.get(graph, 0)
        if item.predicted_seconds is None:
            unknown += launches
        elif launches:
            known += item.predicted_seconds * launches / sum(item.launches.values())
    return known, unknown
