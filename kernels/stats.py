"""Statistics of quantized operands and of gradients, in plain PyTorch, and the tables that compiled graphs write them to.

Let `v` be the values that a quantizer rounds, the operand after its rotation, without zeros (padding among them) and
without blocks that hold a NaN or an infinity; and `q` what their codes stand for:

    amax       max |x|                    of the operand before its rotation; NaN or infinite if it holds one
    underflow  share of the v with q = 0
    clipped    share of the v with |v| > g s, the largest that its block can hold (g = 6 for E2M1, 448 for E4M3)
    error      sum (q - v)^2 / sum v^2
    cosine     <d, h> / (|d| |h|)         of a gradient d as the graph has it, and the same GEMM h of the operands before
                                          any quantization, in float32

The three ops write one row of their graph's table and return a copy of an input, which the graph uses in its place: so
they are pure to everything that moves, copies or removes nodes, and running one again writes the same numbers. They are
kept out of CUDA graphs by their tag, so the host sees every run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ..process import process
from . import cpu
from .cpu import decoded
from .numerics import philox, reference
from .numerics.grouped import scaled_grouped_mm
from .numerics.reference import Blocks
from .quantizer import E2M1_MAX, E4M3_MAX, Quantizer, padded
from .quantizer import quantizer as quantizer_named
from .schemas import SCHEMAS, Observe, ObserveGradient, ObserveRequantized, by_name

FIELDS = ("amax", "underflow", "clipped", "error", "cosine")
"""The columns of a table."""

_LARGEST = {"e2m1": E2M1_MAX, "e4m3": E4M3_MAX}

UNWRITTEN = -2.0
"""In place of a number that no run has written yet."""


class Table(NamedTuple):
    """The statistics of one graph: float32[rows, fields]; and when it was written last, in writes of the process."""

    values: torch.Tensor
    time: int


def read(graph: str) -> Table | None:
    """What a graph wrote, on the CPU; None if it has not run."""
    found = process.tables.get(graph)
    return found and Table(found.values.cpu(), found.time)


def _write(call: Observe | ObserveRequantized | ObserveGradient, first: str, values: list[torch.Tensor]) -> None:
    """Put values into the row of an op, from the column `first` on."""
    known = process.tables.get(call.graph)
    if known is None:
        with torch.inference_mode(False):
            empty = torch.full((call.rows, len(FIELDS)), UNWRITTEN, dtype=torch.float32, device=values[0].device)
        known = Table(empty, 0)
    start = FIELDS.index(first)
    known.values[call.row, start : start + len(values)].copy_(torch.stack([value.float() for value in values]))
    process.tables[call.graph] = known._replace(time=next(process.writes))


class Backend(NamedTuple):
    """`decode` and `unrotate` of `numerics/reference.py`; and how many elements are measured at a time, None for all."""

    decode: Callable[[Blocks, Quantizer], torch.Tensor]
    unrotate: Callable[[torch.Tensor, None, int, int], torch.Tensor]
    elements: int | None = None


def _decode_on_cpu(blocks: Blocks, spec: Quantizer) -> torch.Tensor:
    return decoded.decode(blocks, spec.shrink)


_BACKENDS = {
    "CUDA": Backend(reference.decode, reference.unrotate),
    "CPU": Backend(_decode_on_cpu, cpu.unrotate, elements=1 << 16),
}


def of_operand(
    x: torch.Tensor,
    blocks: Blocks,
    spec: Quantizer,
    *,
    transpose: bool,
    stream: int,
    sign_seed: torch.Tensor | None,
    backend: Backend,
) -> list[torch.Tensor]:
    """amax, underflow, clipped and error of `x: float[rows, columns]`, or its transpose, as float scalars.

    blocks: what `reference.quantize` of the same arguments gave.
    """
    if not x.numel():
        return [torch.zeros((), dtype=torch.float32, device=x.device)] * 4
    amax = torch.stack(x.aminmax()).abs().amax().float()
    scale = torch.where(amax.isfinite(), 1 / amax.clamp(min=2.0**-126), 1.0)  # or a small gradient's squares were 0
    signs = philox.signs(sign_seed, stream, spec.rotation) if spec.random_signs else None
    x = x.t() if transpose else x
    height = max(backend.elements // x.shape[1], 1) if backend.elements else x.shape[0]
    parts = []
    for start in range(0, x.shape[0], height):
        rows = slice(start, start + height)
        part = blocks._replace(codes=blocks.codes[rows], scales=blocks.scales[rows], mask=None)
        parts.append(_sums(_rotated(x[rows], spec, signs, backend), backend.decode(part, spec), part, spec, scale))
    count, lost, beyond, error, size = torch.stack(parts).sum(0)
    return [amax, lost / count.clamp(min=1), beyond / count.clamp(min=1), torch.where(size == 0, 0.0, error / size)]


def _sums(v: torch.Tensor, q: torch.Tensor, blocks: Blocks, spec: Quantizer, scale: torch.Tensor) -> torch.Tensor:
    """float64[5]: how many values there are, how many became 0, how many are beyond their block; and the sums of the
    squares of error and value, times the square of `scale`."""
    units = _units(blocks, spec)
    q, v = (t.unflatten(1, (-1, spec.group)) for t in (q, v))
    bad = ~(v if units is None else units).isfinite()
    if bad.device.type != "cpu" or bad.any():  # to look at it, a GPU would wait
        q, v = q.masked_fill(bad, 0.0), v.masked_fill(bad, 0.0)
    count = _nonzero(v)
    beyond = 0 * count if units is None else (v.abs() > _LARGEST[spec.elements] * units).count_nonzero()
    error, size = (torch.linalg.vector_norm(t * scale).double().square() for t in (q - v, v))
    return torch.stack([count.double(), (count - _nonzero(q)).double(), beyond.double(), error, size])


def _nonzero(x: torch.Tensor) -> torch.Tensor:
    """How many elements aren't 0: 0.3 ns an element on one Zen4 core, where `count_nonzero` takes 2.2."""
    return x.sign().abs().sum()


def _rotated(x: torch.Tensor, spec: Quantizer, signs: torch.Tensor | None, backend: Backend) -> torch.Tensor:
    """The values that a quantizer rounds: float32[rows, padded], zeros and rotation as in `reference.quantize`."""
    columns = x.shape[1]
    x = torch.nn.functional.pad(x.float(), (0, padded(columns, spec.block) - columns))
    if not spec.rotation:
        return x
    if signs is not None:
        x = (x.unflatten(1, (-1, spec.rotation)) * signs).flatten(1)
    return backend.unrotate(x, None, spec.rotation, x.shape[1])  # a Hadamard matrix is its own transpose


def _units(blocks: Blocks, spec: Quantizer) -> torch.Tensor | None:
    """What an element of 1 stands for: float32[rows, groups, 1]; None for a format without scales."""
    if spec.exact:
        return None
    scales = blocks.scales[..., None]
    units = scales.float() * blocks.tensor_scale if spec.two_level else reference.decode_e8m0(scales)
    return units / spec.shrink


def of_gradient(gradient: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """The cosine of the two, as a float scalar; NaN if one is zero, empty or not finite."""
    if not gradient.numel():
        return torch.full((), torch.nan, dtype=torch.float32, device=gradient.device)
    d, h = (t.float().flatten() for t in (gradient, expected))
    d, h = (t / torch.stack(t.aminmax()).abs().amax() for t in (d, h))  # or the squares of a small gradient were 0
    return torch.dot(d, h) / (torch.dot(d, d) * torch.dot(h, h)).sqrt()


def _implement(backend: Backend) -> dict[str, Callable]:
    """The ops over one backend."""

    def observe(call: Observe):
        spec = quantizer_named(call.quantizer)
        blocks = Blocks(call.codes, call.scales, call.tensor_scale, None, spec.format)
        how = dict(transpose=call.transpose, stream=call.stream, sign_seed=call.sign_seed, backend=backend)
        _write(call, "amax", of_operand(call.x, blocks, spec, **how))
        return call.scales.clone()

    def observe_requantized(call: ObserveRequantized):
        """The operand is the transpose of what the source's codes stand for."""
        spec = quantizer_named(call.source)
        before = Blocks(call.source_codes, call.source_scales, call.source_tensor_scale, None, spec.format)
        x = backend.decode(before, spec)
        same = {name: value for name, value in call._asdict().items() if name in Observe._fields}
        return observe(Observe(x=x, transpose=True, **same))

    return {"observe": observe, "observe_requantized": observe_requantized, "observe_gradient": _observe_gradient}


def _observe_gradient(call: ObserveGradient):
    """The gradient is `a @ b^T` in low precision, [rows, columns] or with more columns; a grouped product if there are
    ends."""
    pair = ((call.a, call.a_transposed), (call.b, call.b_transposed))
    a, b = ((t.t() if transposed else t).float() for t, transposed in pair)
    with torch.autocast(a.device.type, enabled=False):
        if call.ends is None:
            expected = a @ b.t()
        else:
            left, right = map(_exact, (a, b))
            how = (call.ends, call.matrices, call.gemm, 1.0, torch.float32)
            expected = scaled_grouped_mm(left, right, *how, reference.scaled_mm)
        cosine = of_gradient(call.gradient[:, : expected.shape[1]], expected)
    _write(call, "cosine", [cosine])
    return call.gradient.clone()


def _exact(x: torch.Tensor) -> Blocks:
    """An operand that nothing rounds: the format `"float32"`, without scales."""
    return Blocks(x, x.new_empty((x.shape[0], 0), dtype=torch.uint8), x.new_empty(0), None, "float32")


def _fake_of_scales(call: Observe | ObserveRequantized):
    return torch.empty_like(call.scales)


def _fake_of_gradient(call: ObserveGradient):
    return torch.empty_like(call.gradient)


_FAKE: dict[str, Callable[..., Any]] = {
    "observe": _fake_of_scales,
    "observe_requantized": _fake_of_scales,
    "observe_gradient": _fake_of_gradient,
}
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout, torch.Tag.cudagraph_unsafe)

_library = torch.library.Library("quartet", "FRAGMENT")
for _name, _fake in _FAKE.items():
    _library.define(f"{_name}{SCHEMAS[_name]}", tags=_TAGS)
    torch.library.register_fake(f"quartet::{_name}", by_name(_name, _fake), lib=_library)
for _key, _backend in _BACKENDS.items():
    for _name, _function in _implement(_backend).items():
        _library.impl(_name, by_name(_name, _function), _key)
