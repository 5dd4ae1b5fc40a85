"""`cross_compile`: what a model becomes on a GPU, without the GPU."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..capture.call import call_of
from ..capture.capture import run_on_fakes
from ..capture.explain import report_of
from ..config.listed import lists_options
from ..errors import QuartetError
from ..machines.roofline import ISSUE_SHARE, format_of_dtype, format_of_mma, predict
from ..machines.targets import TENSOR_MEMORY_COLUMNS, Target, find_target
from ..progress import Progress, teller
from . import amdgcn
from .artifact import Artifact, Kernel, LibraryCall, Module
from .matmuls import Seconds, find_matmuls
from .sass import BF16_INSTRUCTIONS, UnknownTrips, issued
from .traffic import elements_of, is_product, is_reference, marker

if TYPE_CHECKING:  # at run time, Inductor and Triton are imported by the call
    from typing_extensions import Unpack

    from ..config.listed import Options
    from .backend import Generated
    from .binary import Binary
    from .launches import Launch


class CrossCompileError(QuartetError):
    """A kernel that would not run, or not as it should. artifact: everything that was compiled all the same."""

    def __init__(self, message: str, artifact: Artifact) -> None:
        super().__init__(message)
        self.artifact = artifact


@lists_options
def cross_compile(
    model: Callable[..., Any],
    *inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    target: str | Target = "sm_100",
    progress: Progress = False,
    **options: Unpack[Options],
) -> Artifact:
    """What Inductor with `backend="quartet"` generates for `model(*inputs, **kwargs)` on a GPU, forward and backward,
    compiled to PTX and cubin; for AMD to its assembly and hsaco, without predicted times. Needs no GPU, no driver; runs no
    kernel, and leaves weights, random state, caches, torch and Triton as they are (Triton's own cache keeps the binaries).

    model, inputs: on the CPU, or without values (meta). Gradients as in a training step, unless called under
    `torch.no_grad()`. target: "sm_80", "sm_89", "sm_90", "sm_100", "sm_103", "sm_120", AMD's "gfx950", a chip of these, as
    "b200", or a `Target`. progress: it may take minutes: a callable, as `print`, is told in words what is done next; True
    tells a person who watches stderr. options: those of `torch.compile(..., backend="quartet", options=...)`. Nothing is
    measured: where Inductor would, its first choice is compiled.

    Raises `QuartetError` where there is no Triton; `OptionError` and `RecipeError`; `CaptureError` for code that can't be
    captured; `CrossCompileError`, which has the artifact, if a kernel doesn't compile, is empty or asks for more tensor
    memory than there is, or if one of ours asks for more shared memory than there is, spills registers or misses the FP4
    instruction that the target has.
    """
    chosen, tell = find_target(target), teller(progress)
    if importlib.util.find_spec("triton") is None:
        raise QuartetError(
            "Cross-compilation needs Triton, which is not installed here; expected the version that this torch wants. "
            "Install it: pip install triton."
        )
    from .._compat.fake_gpu import code_only, fake_gpu, scratch_folder
    from .backend import CrossBackend

    call, config = call_of(model, inputs, kwargs, options)
    backend = CrossBackend(config, chosen, call.parameter_names())
    with scratch_folder() as folder:
        tell(f"generating the code for {chosen.name} ({chosen.chip})")
        with code_only(folder, backend.on_joint_graph):
            ran = run_on_fakes(call, backend)
        groups, compiled = _groups(backend.modules), []
        with fake_gpu(chosen):
            for number, group in enumerate(groups, 1):
                tell(f"compiling kernel {number} of {len(groups)}")
                compiled.append((_kernel(group, chosen, folder), group))
    matmuls, unfed = find_matmuls(backend.modules, _seconds(backend.modules, compiled, chosen), chosen)
    artifact = Artifact(
        target=chosen,
        kernels=tuple(kernel for kernel, _ in compiled),
        library_calls=tuple(_library_calls(backend.modules, chosen)),
        modules=tuple(Module(graph=m.graph, source=m.source, constants=m.constants) for m in backend.modules),
        matmuls=tuple(matmuls),
        unfed=unfed,
        report=report_of(backend, ran),
    )
    if artifact.failures:
        lines = "\n".join(f"  {failure}" for failure in artifact.failures)
        raise CrossCompileError(
            f"{len(artifact.failures)} failures in the kernels compiled for {chosen.name}:\n{lines}\n"
            "The error's .artifact has every kernel with its source and PTX.",
            artifact,
        )
    return artifact


def _groups(modules: Iterable[Generated]) -> list[list[tuple[str, Launch]]]:
    """The launches of each distinct kernel, with their graphs; two kernels that differ only in their name are one."""
    groups: dict[str, list[tuple[str, Launch]]] = {}
    for module in modules:
        for launch in module.launches:
            if launch.source:
                key = launch.source.replace(launch.name, "kernel")
                groups.setdefault(key, []).append((module.graph, launch))
    return list(groups.values())


def _seconds(
    modules: Iterable[Generated], compiled: Iterable[tuple[Kernel, list[tuple[str, Launch]]]], target: Target
) -> dict[int, Seconds | None]:
    """Predicted seconds of each launch, by its `id`; None where they are not known."""
    seconds: dict[int, Seconds | None] = {}
    for kernel, group in compiled:
        full, realistic = kernel.predicted_seconds, kernel.realistic_seconds
        each = None if full is None or realistic is None else Seconds(full=full, realistic=realistic) * (1 / len(group))
        seconds.update((id(launch), each) for _, launch in group)
    for launch in (launch for module in modules for launch in module.launches if not launch.source):
        full, _ = predict(launch.bytes, launch.operations, format_of_dtype(launch.dtype), target)
        seconds[id(launch)] = None if full is None else Seconds(full=full, realistic=full)
    return seconds


def _kernel(launches: list[tuple[str, Launch]], target: Target, folder: str) -> Kernel:
    from .binary import compile_kernel

    first = launches[0][1]
    op, number_format = marker(first.source) or ("", "")
    known: dict[str, Any] = {
        "name": first.name,
        "source": first.source,
        "op": op,
        "number_format": number_format,
        "launches": Counter(graph for graph, _ in launches),
        "bytes": sum(launch.bytes for _, launch in launches),
        "operations": _sum(launch.operations for _, launch in launches),
        "elements": elements_of(first.source) * len(launches) if op else 0,
    }
    try:
        binary = compile_kernel(first.name, first.source, folder, target)
    except Exception as error:  # noqa: BLE001  whatever Triton, LLVM or ptxas raise
        return Kernel(**known, failures=(f"does not compile: {type(error).__name__}: {error}",))
    if target.amd:
        remarks: tuple[str, ...] = (f"{amdgcn.instruction_count(binary.ptx)} instructions in its text, a loop's once",)
    else:
        known["instructions"], remarks = _instructions(op, binary, [launch.ctas for _, launch in launches])
    work = known["bytes"], known["operations"], format_of_mma(binary.mma), target, known.get("instructions")
    seconds, bound = predict(*work)
    realistic, _ = predict(*work, issue_share=ISSUE_SHARE)
    read = {name: value for name, value in vars(binary).items() if name != "stores"}
    kernel = Kernel(**known, **read, predicted_seconds=seconds, realistic_seconds=realistic, bound=bound)
    failures, notes = judge(kernel, binary.stores, target)
    return Kernel(**{**vars(kernel), "failures": failures, "notes": remarks + notes})


def _instructions(op: str, binary: Binary, ctas: list[int]) -> tuple[int | None, tuple[str, ...]]:
    """Instructions of all threads of a kernel of ours in all its launches, None if they can't be counted; and what is worth
    a note of how."""
    if not op:
        return None, ()
    if not all(ctas):
        return None, ("its instructions are not counted: its grid is not known",)
    from .binary import disassemble

    untaken: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    if format_of_mma(binary.mma) == "fp8" and any(format_of_mma([kind]) == "bf16" for kind in binary.mma):
        untaken = BF16_INSTRUCTIONS
        notes = ("counted as if FP8 held every row's scales: its loop in bf16 counts no instruction",)
    try:
        text = disassemble(binary.cubin)
        counted = sum(issued(text, count, untaken).total() * times for count, times in Counter(ctas).items())
    except UnknownTrips as error:
        return None, (f"its instructions are not counted: {error}",)
    return counted * binary.threads, notes


def judge(kernel: Kernel, stores: bool, target: Target) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What is wrong with a compiled kernel, and what is worth a note. stores: whether its PTX writes to memory."""
    failures, notes = [], []
    if not stores:
        failures.append("its body is empty: it writes nothing")
    if kernel.tmem_columns > TENSOR_MEMORY_COLUMNS:
        failures.append(f"{kernel.tmem_columns} columns of tensor memory; there are {TENSOR_MEMORY_COLUMNS}")
    if kernel.shared_bytes > target.shared_bytes:
        too_much = f"{kernel.shared_bytes} bytes of shared memory; a CTA has at most {target.shared_bytes}"
        if kernel.op:
            failures.append(too_much)
        else:
            notes.append(f"{too_much}: a GPU would pass over this configuration, the first of several")
    if kernel.stack_bytes:
        spill = f"{kernel.stack_bytes} bytes of stack a thread: registers spill"
        (failures if kernel.op else notes).append(spill)
    elements = kernel.number_format[-3:]  # "fp4" or "fp8"
    if is_product(kernel.op) and target.multiplies(kernel.number_format) and format_of_mma(kernel.mma) != elements:
        kinds = ", ".join(kernel.mma) or "none"
        failures.append(f"no {elements.upper()} matrix instruction, which {target.name} has (found: {kinds})")
    return tuple(failures), tuple(notes)


def _library_calls(modules: Iterable[Generated], target: Target) -> Iterable[LibraryCall]:
    groups: dict[str, list[tuple[str, Launch]]] = {}
    for module in modules:
        for launch in module.launches:
            if not launch.source:
                groups.setdefault(launch.name, []).append((module.graph, launch))
    for name, group in groups.items():
        times = [predict(call.bytes, call.operations, format_of_dtype(call.dtype), target) for _, call in group]
        yield LibraryCall(
            name=re.sub(r"\.(default|out)$", "", name),
            kind=_kind(name),
            launches=Counter(graph for graph, _ in group),
            bytes=sum(call.bytes for _, call in group),
            operations=_sum(call.operations for _, call in group),
            predicted_seconds=_sum(seconds for seconds, _ in times),
            bound=", ".join(dict.fromkeys(bound for _, bound in times if bound)),
        )


def _kind(name: str) -> str:
    if is_reference(name):
        return "extern (reference op)"
    return "extern (CPU)" if name.startswith("C++") else "extern (library)"


def _sum(values: Iterable[Any]) -> Any:
    """Their sum; None if one of them is."""
    values = list(values)
    return None if None in values else sum(values)
