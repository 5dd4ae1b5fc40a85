"""What cross compilation gives: the generated modules, their kernels compiled for the target, and predicted times."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..machines.roofline import ISSUE_SHARE
from ..machines.targets import Target
from ..report.report import Report
from ..tables import aligned, html, html_folded, html_lines, ruled
from .matmuls import Comparison, Matmul, Seconds, total

NAME_WIDTH = 48


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kernel:
    """A Triton kernel of the generated modules, compiled for the target; nothing of it ran.

    op, number_format: of a kernel of ours, as "scaled_mm" and "mxfp4"; empty for Inductor's own.
    ptx, cubin: for AMD its assembly and binary, shared_bytes LDS, stack_bytes scratch; no times then.
    mma: kinds of matrix instructions and how often each is in the PTX; conversions: those to E2M1.
    registers, stack_bytes: a thread. shared_bytes, tmem_columns, threads: a CTA (thread block).
    launches: how often each graph launches it.
    bytes, operations, instructions: of all its launches together, and of all threads; operations is None where they are
    not known, instructions where a loop's trips are not (a note says so), or the kernel is not ours.
    elements: that all its launches quantize, decode or rotate.
    predicted_seconds: of all its launches; bound: "memory", "issue" (of instructions), or the number format whose rate
    bounds it. realistic_seconds: the same at `roofline.ISSUE_SHARE` of the issue rate.
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
    elements: int = 0
    predicted_seconds: float | None = None
    realistic_seconds: float | None = None
    bound: str = ""
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def instructions_an_element(self) -> float | None:
        """Instructions for each element that it quantizes, decodes or rotates; None where they are not known."""
        return self.instructions / self.elements if self.instructions and self.elements else None


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

    matmuls: each matrix product, in this recipe and in bf16. unfed: seconds of quantizing that feeds no product of its own
    graph, or one whose time is not known.
    report: what was rewritten, as `explain` says it.
    """

    target: Target
    kernels: tuple[Kernel, ...]
    library_calls: tuple[LibraryCall, ...]
    modules: tuple[Module, ...]
    matmuls: tuple[Matmul, ...]
    unfed: Seconds
    report: Report

    @property
    def graphs(self) -> list[str]:
        """The names of the graphs."""
        return [module.graph for module in self.modules]

    @property
    def quantized(self) -> Comparison | None:
        """All quantized products together; None if there are none whose time is known."""
        return total([one for one in self.matmuls if one.number_format], self.unfed)

    @property
    def speedup(self) -> float | None:
        """Predicted time of the quantized products in bf16 over that in this recipe, quantizing included; None if there are
        none. Each kernel counts with the longest of its bytes, matrix operations and instructions, at the datasheet's
        rates."""
        return None if self.quantized is None else self.quantized.speedup

    @property
    def realistic_speedup(self) -> float | None:
        """The same with instructions at `roofline.ISSUE_SHARE` of the issue rate."""
        return None if self.quantized is None else self.quantized.realistic_speedup

    @property
    def failures(self) -> list[str]:
        """One line for each thing that is wrong with a kernel."""
        return [f"{kernel.name}: {failure}" for kernel in self.kernels for failure in kernel.failures]

    def __str__(self) -> str:
        kernels = ruled(aligned(_kernel_rows(self), _KERNEL_LEFT))
        matmuls = (
            [] if self.target.amd else [*ruled(aligned(_matmul_rows(self), _MATMUL_LEFT)), ""]
        )  # nothing but times
        return "\n".join([*kernels, "", *matmuls, *_summary(self)])

    def _repr_html_(self) -> str:
        kernels = html_folded("Kernels", html(_kernel_rows(self), _KERNEL_LEFT), preformatted=False)
        matmuls = "" if self.target.amd else html(_matmul_rows(self), _MATMUL_LEFT)
        return f"<div>{html_lines(_summary(self))}{matmuls}{kernels}</div>"

    def to_json(self, *, text: bool = False) -> str:
        """Everything as JSON, without cubins; text: with the sources and the PTX too."""
        texts = () if text else ("source", "ptx")
        data = {
            "target": dataclasses.asdict(self.target),
            "kernels": [
                {
                    **_plain(kernel, without=("cubin", *texts)),
                    "instructions_an_element": kernel.instructions_an_element,
                }
                for kernel in self.kernels
            ],
            "library_calls": [_plain(call) for call in self.library_calls],
            "matmuls": [_compared(one) for one in self.matmuls],
            "quantized": self.quantized and _compared(self.quantized),
            "speedup": self.speedup,
            "realistic_speedup": self.realistic_speedup,
            "issue_share": ISSUE_SHARE,
            "modules": [_plain(module, without=("constants", *texts)) for module in self.modules],
            "report": dataclasses.asdict(self.report),
            "failures": self.failures,
        }
        return json.dumps(data, indent=1)

    def write(self, folder: str | pathlib.Path) -> None:
        """Write the modules (`forward_0.py`) and each kernel's source, PTX and cubin (AMD: .amdgcn, .hsaco) to a folder."""
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for module in self.modules:
            (folder / f"{module.graph.replace(' ', '_')}.py").write_text(module.source)
        for index, kernel in enumerate(self.kernels):
            stem = f"{index:02}_{kernel.name[:120]}"
            (folder / f"{stem}.py").write_text(kernel.source)
            text, binary = ("amdgcn", "hsaco") if self.target.amd else ("ptx", "cubin")
            (folder / f"{stem}.{text}").write_text(kernel.ptx)
            (folder / f"{stem}.{binary}").write_bytes(kernel.cubin)


def _plain(item: Any, without: Sequence[str] = ()) -> dict[str, Any]:
    return {field.name: getattr(item, field.name) for field in dataclasses.fields(item) if field.name not in without}


def _compared(item: Comparison) -> dict[str, Any]:
    figures = {"speedup": item.speedup, "realistic_speedup": item.realistic_speedup}
    return {**dataclasses.asdict(item), **figures, "quantizing_share": item.quantizing_share}


AT_SHARE = f"at {100 * ISSUE_SHARE:.0f} %"
"""What the tables call times at `roofline.ISSUE_SHARE` of the issue rate."""

_COLUMNS = ("kernel", "graph", "runs", "matrix instructions", "regs", "stack", "shared", "tmem", "MB", "Gop", "instr/el",
            "predicted us", AT_SHARE, "bound by")  # fmt: skip
_MATMUL_COLUMNS = ("matmul", "format", "graph", "runs", "product us", "quantizing us", "in all us", AT_SHARE, "bf16 us",
                   "speedup", AT_SHARE)  # fmt: skip


_KERNEL_LEFT, _MATMUL_LEFT = (0, 1, 3, 13), (0, 1, 2)


def _kernel_rows(artifact: Artifact) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [_COLUMNS]
    for kernel in artifact.kernels:
        numbers = (kernel.registers, kernel.stack_bytes, kernel.shared_bytes, kernel.tmem_columns)
        mma = ", ".join(f"{count} {kind}" for kind, count in kernel.mma.items())
        rows.append((*_head(kernel), mma, *map(str, numbers), *_tail(kernel)))
    for call in artifact.library_calls:
        rows.append((*_head(call), call.kind, "", "", "", "", *_tail(call)))
    return rows


def _matmul_rows(artifact: Artifact) -> list[tuple[str, ...]]:
    """Each matmul, all that are quantized, and all."""
    rows: list[tuple[str, ...]] = [_MATMUL_COLUMNS]
    for one in artifact.matmuls:
        batch = f"{one.batch} x " if one.batch > 1 else ""
        name = f"{batch}[{one.m}, {one.k}] @ [{one.k}, {one.n}]"
        rows.append((name, one.number_format or "as it was", one.graph, str(one.calls), *_times(one)))
    for name, what in (("all quantized", artifact.quantized), ("all", total(artifact.matmuls, artifact.unfed))):
        if what is not None:
            rows.append((name, "", "", "", *_times(what)))
    return rows


def _times(item: Comparison) -> tuple[str, ...]:
    seconds = (item.product.full, item.quantizing.full, item.seconds.full, item.seconds.realistic, item.bf16_seconds)
    return (*(f"{value * 1e6:.2f}" for value in seconds), f"{item.speedup:.2f}x", f"{item.realistic_speedup:.2f}x")


def _head(item: Kernel | LibraryCall) -> tuple[str, str, str]:
    op = f"{item.op} {item.number_format}: " if isinstance(item, Kernel) and item.op else ""
    name = op + item.name
    name = name if len(name) <= NAME_WIDTH else f"{name[: NAME_WIDTH - 1]}…"
    return name, ", ".join(item.launches), str(sum(item.launches.values()))


def _tail(item: Kernel | LibraryCall) -> tuple[str, ...]:
    operations = "?" if item.operations is None else f"{item.operations / 1e9:.2f}" if item.operations else ""
    each = item.instructions_an_element if isinstance(item, Kernel) else None
    seconds = ("?" if value is None else f"{value * 1e6:.2f}" for value in _predicted(item))
    return f"{item.bytes / 1e6:.2f}", operations, f"{each:.1f}" if each else "", *seconds, item.bound


def _summary(artifact: Artifact) -> list[str]:
    lines = _about_amd(artifact) if artifact.target.amd else _about_times(artifact)
    whole = artifact.quantized
    if whole is not None:
        lines.append(
            f"Quantized matmuls: {whole.speedup:.2f}x bf16 predicted, {whole.realistic_speedup:.2f}x at {ISSUE_SHARE:.0%} "
            f"of the issue rate; quantizing is {whole.quantizing_share:.0%} of their time."
        )
    items: list[Kernel | LibraryCall] = [*artifact.kernels, *artifact.library_calls]
    for graph in artifact.graphs if not artifact.target.amd else ():
        full, realistic, unknown = _seconds(items, graph)
        more = f", and {unknown} calls without a prediction" if unknown else ""
        lines.append(
            f"{graph}: {full * 1e6:.1f} us predicted, {realistic * 1e6:.1f} {AT_SHARE} of the issue rate{more}."
        )
    lines += [f"Note: {kernel.name}: {note}" for kernel in artifact.kernels for note in kernel.notes]
    lines += [f"Graph break at {line}" for line in artifact.report.eager]
    if artifact.report.eager:
        lines.append("Figures are of one run of each graph, also of one that several blocks share.")
    lines += [f"FAILED: {failure}" for failure in artifact.failures]
    return lines


def _about_amd(artifact: Artifact) -> list[str]:
    return [
        f"{len(artifact.kernels)} kernels compiled for {artifact.target.name} ({artifact.target.chip}), not run. No time is "
        "predicted, since instructions of AMD's",
        "binaries are not counted. No GPU of AMD's has run any kernel of this project. shared: LDS; stack: scratch.",
    ]


def _about_times(artifact: Artifact) -> list[str]:
    target = artifact.target
    rates = ", ".join(f"{name} {rate / 1e12:g}" for name, rate in target.rates.items())
    return [
        f"{len(artifact.kernels)} kernels compiled for {target.name}, not run. Times are predicted: the longest of bytes, "
        "matrix operations and",
        f"instructions at the rates of one {target.chip}: {target.bandwidth / 1e12:g} TB/s; dense TFLOP/s {rates}; "
        f"{target.instruction_rate / 1e12:g} T instructions/s, all of them or {ISSUE_SHARE:.0%}. Instructions of our own "
        "kernels: a loop's body times its trips,",
        "both sides of a condition, waits that succeed at once. No launch overhead, no cache between kernels.",
    ]


def _seconds(items: Iterable[Kernel | LibraryCall], graph: str) -> tuple[float, float, int]:
    """A graph's predicted seconds, with all of the issue rate and at `ISSUE_SHARE` of it, each item's spread evenly over its
    launches; and how many launches have none."""
    full, realistic, unknown = 0.0, 0.0, 0
    for item in items:
        launches = item.launches.get(graph, 0)
        seconds, slower = _predicted(item)
        if seconds is None or slower is None:
            unknown += launches
        elif launches:
            of_graph = launches / sum(item.launches.values())
            full += seconds * of_graph
            realistic += slower * of_graph
    return full, realistic, unknown


def _predicted(item: Kernel | LibraryCall) -> tuple[float | None, float | None]:
    """Seconds with all of the issue rate and at `ISSUE_SHARE` of it, the same of a library call."""
    return item.predicted_seconds, item.realistic_seconds if isinstance(item, Kernel) else item.predicted_seconds
