"""The ops that a rewritten graph speaks: `torch.ops.quartet.*`.

They are functional: no output aliases an input or another output, and equal inputs give equal bits, so recomputing is
safe. The one exception is `seed`, which draws from torch's generator. On the CPU they run the C++ kernels of
`kernels/cpu`. In a compiled graph on CUDA they become the Triton templates of `kernels/gpu` (`lowering`); called by
themselves there, and with formats that round nothing, they run the PyTorch reference. Layouts, rounding and NaN rules:
`kernels/numerics/reference.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType

import torch

from .._compat import group_ranks
from . import cpu
from .numerics import grouped, reference
from .numerics.reference import Blocks
from .operand_formats import operand_format, packed_in
from .quantizer import Quantizer, padded
from .quantizer import quantizer as quantizer_named

_SCHEMAS = {
    "seed": "(SymInt count, Device device, str[] shared_by) -> Tensor",
    "quantize": "(Tensor x, str quantizer, bool transpose, bool mask, int stream, Tensor? seed, Tensor? sign_seed)"
    " -> (Tensor codes, Tensor scales, Tensor tensor_scale, Tensor mask)",
    "quantize_pair": "(Tensor dy, str row_quantizer, str column_quantizer, Tensor seed, Tensor sign_seed)"
    " -> (Tensor row_codes, Tensor row_scales, Tensor row_tensor_scale,"
    " Tensor column_codes, Tensor column_scales, Tensor column_tensor_scale)",
    "requantize": "(Tensor codes, Tensor scales, Tensor tensor_scale, str source, str quantizer, int stream,"
    " Tensor? seed, Tensor? sign_seed) -> (Tensor codes, Tensor scales, Tensor tensor_scale)",
    "transposed": "(Tensor codes, Tensor scales, Tensor tensor_scale, str quantizer)"
    " -> (Tensor codes, Tensor scales, Tensor tensor_scale)",
    "scaled_mm": "(Tensor a, Tensor a_scales, Tensor a_tensor_scale, Tensor b, Tensor b_scales, Tensor b_tensor_scale,"
    " float alpha, ScalarType dtype) -> Tensor",
    "scaled_grouped_mm": "(Tensor a, Tensor a_scales, Tensor a_tensor_scale, Tensor b, Tensor b_scales,"
    " Tensor b_tensor_scale, Tensor ends, int matrices, str gemm, float alpha, ScalarType dtype) -> Tensor",
    "separate_groups": "(Tensor ends, Tensor x, int block) -> (Tensor index, Tensor back, Tensor separate_ends)",
    "separate_matrices": "(Tensor x, int block) -> (Tensor index, Tensor back, Tensor separate_ends)",
    "unrotate": "(Tensor x, Tensor? mask, int rotation, SymInt columns) -> Tensor",
}

_library = torch.library.Library("quartet", "DEF")
for _name, _schema in _SCHEMAS.items():
    _tags = (torch.Tag.nondeterministic_seeded,) if _name == "seed" else ()
    _library.define(_name + _schema, tags=(*_tags, torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout))


def seed(count: int, device: torch.device, shared_by: Sequence[str] = ()) -> torch.Tensor:
    """int64[count]: one 64-bit seed a matmul, drawn from the device's default generator.

    Ranks draw different seeds from equal generators, so that data-parallel noise is independent. shared_by: names of the
    process groups whose ranks draw the same: those of tensor parallelism, who compute replicated gradients each for
    itself.
    """
    drawn = torch.randint(0, 2**63 - 1, (count,), dtype=torch.int64, device=device)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        rank = torch.distributed.get_rank()
        first = rank + sum(min(group_ranks(name)) - rank for name in shared_by)  # ranks are row-major in a mesh
        drawn = drawn ^ (first * 0x2545F4914F6CDD1D & (2**63 - 1))
    return drawn


def _implement(backend: ModuleType) -> dict[str, Callable]:
    """The ops over one backend: a module with the functions of `kernels/numerics/reference.py`."""

    def quantize(x, quantizer, transpose, mask, stream, seed=None, sign_seed=None):
        spec = quantizer_named(quantizer)
        return tuple(
            backend.quantize(x, spec, transpose=transpose, mask=mask, stream=stream, seed=seed, sign_seed=sign_seed)
        )

    def quantize_pair(dy, row_quantizer, column_quantizer, seed, sign_seed):
        row, column = quantizer_named(row_quantizer), quantizer_named(column_quantizer)
        rows, columns = backend.quantize_pair(dy, row, column, seed=seed, sign_seed=sign_seed)
        return (*rows[:3], *columns[:3])

    def requantize(codes, scales, tensor_scale, source, quantizer, stream, seed=None, sign_seed=None):
        blocks = Blocks(codes, scales, tensor_scale, mask=None)
        before, after = quantizer_named(source), quantizer_named(quantizer)
        return tuple(backend.requantize(blocks, before, after, stream=stream, seed=seed, sign_seed=sign_seed))[:3]

    def transposed(codes, scales, tensor_scale, quantizer):
        blocks = Blocks(codes, scales, tensor_scale, mask=None)
        return tuple(backend.transposed(blocks, quantizer_named(quantizer)))[:3]

    def scaled_mm(a, a_scales, a_tensor_scale, b, b_scales, b_tensor_scale, alpha, dtype):
        left = Blocks(a, a_scales, a_tensor_scale, mask=None)
        right = Blocks(b, b_scales, b_tensor_scale, mask=None)
        return backend.scaled_mm(left, right, alpha, dtype)

    def scaled_grouped_mm(a, a_scales, a_tensor_scale, b, b_scales, b_tensor_scale, ends, matrices, gemm, alpha, dtype):
        left = Blocks(a, a_scales, a_tensor_scale, mask=None)
        right = Blocks(b, b_scales, b_tensor_scale, mask=None)
        return grouped.scaled_grouped_mm(left, right, ends, matrices, gemm, alpha, dtype, backend.scaled_mm)

    def unrotate(x, mask, rotation, columns):
        return backend.unrotate(x, mask, rotation, columns)

    functions = (quantize, quantize_pair, requantize, transposed, scaled_mm, scaled_grouped_mm, unrotate)
    return {f.__name__: f for f in (*functions, grouped.separate_groups, grouped.separate_matrices)}


def _fake_blocks(x: torch.Tensor, spec: Quantizer, rows, columns) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    full, form = padded(columns, spec.block), operand_format(spec)
    tensor_scale = x.new_empty((int(spec.two_level),), dtype=torch.float32)
    codes = x.new_empty((rows, full // form.packed), dtype=form.codes)
    groups = 0 if spec.exact else full // spec.group
    return codes, x.new_empty((rows, groups), dtype=form.scales), tensor_scale


def _fake_quantize(x, quantizer, transpose, mask, stream, seed=None, sign_seed=None):
    spec = quantizer_named(quantizer)
    rows, columns = reversed(x.shape) if transpose else x.shape
    bits = x.new_empty((rows, padded(columns, spec.block) // 8 if mask else 0), dtype=torch.uint8)
    return (*_fake_blocks(x, spec, rows, columns), bits)


def _fake_quantize_pair(dy, row_quantizer, column_quantizer, seed, sign_seed):
    rows, columns = dy.shape
    return (
        *_fake_blocks(dy, quantizer_named(row_quantizer), rows, columns),
        *_fake_blocks(dy, quantizer_named(column_quantizer), columns, rows),
    )


def _fake_requantize(codes, scales, tensor_scale, source, quantizer, stream, seed=None, sign_seed=None):
    return _fake_blocks(codes, quantizer_named(quantizer), _width(codes), codes.shape[0])


def _fake_transposed(codes, scales, tensor_scale, quantizer):
    return _fake_blocks(codes, quantizer_named(quantizer), _width(codes), codes.shape[0])


def _width(codes: torch.Tensor):
    """Columns of an operand."""
    return codes.shape[1] * packed_in(codes.dtype)


def _fake_scaled_mm(a, a_scales, a_tensor_scale, b, b_scales, b_tensor_scale, alpha, dtype):
    torch._check(a.shape[1] == b.shape[1], lambda: f"scaled_mm contracts {a.shape[1]} with {b.shape[1]} code columns")
    return a.new_empty((a.shape[0], b.shape[0]), dtype=dtype)


def _fake_scaled_grouped_mm(
    a, a_scales, a_tensor_scale, b, b_scales, b_tensor_scale, ends, matrices, gemm, alpha, dtype
):
    rows, columns = grouped.product_shape(a.shape[0], b.shape[0], matrices, gemm)
    return a.new_empty((rows, columns), dtype=dtype)


def _fake_separate_groups(ends, x, block):
    rows = grouped.separate_rows(x.shape[0], ends.shape[0], block)
    index, back = (ends.new_empty((size,), dtype=torch.int64) for size in (rows, x.shape[0]))
    return index, back, torch.empty_like(ends, dtype=torch.int32)


def _fake_separate_matrices(x, block):
    matrices, rows, _ = x.shape
    return _fake_separate_groups(x.new_empty((matrices,), dtype=torch.int32), x.new_empty((matrices * rows,)), block)


def _fake_unrotate(x, mask, rotation, columns):
    return x.new_empty((x.shape[0], columns))


def _fake_seed(count, device, shared_by):
    return torch.empty((count,), dtype=torch.int64, device=device)


_FAKE = {
    "seed": _fake_seed,
    "quantize": _fake_quantize,
    "quantize_pair": _fake_quantize_pair,
    "requantize": _fake_requantize,
    "transposed": _fake_transposed,
    "scaled_mm": _fake_scaled_mm,
    "scaled_grouped_mm": _fake_scaled_grouped_mm,
    "separate_groups": _fake_separate_groups,
    "separate_matrices": _fake_separate_matrices,
    "unrotate": _fake_unrotate,
}
_library.impl("seed", seed, "BackendSelect")
for _key, _backend in (("CUDA", reference), ("CPU", cpu)):
    for _name, _function in _implement(_backend).items():
        _library.impl(_name, _function, _key)
for _name, _function in _FAKE.items():
    torch.library.register_fake(f"quartet::{_name}", _function, lib=_library)
