"""The ops that a rewritten graph speaks: `torch.ops.quartet.*`.

They are functional: no output aliases an input or another output, and equal inputs give equal bits, so recomputing is
safe. The one exception is `seed`, which draws from torch's generator. On the CPU they run the C++ kernels of
`kernels/cpu`. In a compiled graph on CUDA they become the Triton templates of `kernels/gpu` (`lowering`); called by
themselves there, and with formats that round nothing, they run the PyTorch reference. Layouts, rounding and NaN rules:
`kernels/numerics/reference.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from .._compat import check, group_ranks, rank
from ..errors import WireError
from . import cpu, weight_cache
from .numerics import grouped, reference
from .numerics.reference import Blocks
from .operand_formats import OPERAND_FORMATS, check_format
from .quantizer import Quantizer, padded
from .quantizer import quantizer as quantizer_named
from .schemas import (
    SCHEMAS,
    Decode,
    Gathered,
    Operand,
    Quantize,
    QuantizePair,
    Requantize,
    ScaledGroupedMM,
    ScaledMM,
    Seed,
    SeparateGroups,
    SeparateMatrices,
    Transposed,
    Unrotate,
    by_name,
    epilogue_of,
    operands_of,
)


def _seed(call: Seed) -> torch.Tensor:
    """int64[count]: one 64-bit seed a matmul, drawn from the device's default generator.

    Ranks draw different seeds from equal generators, so that data-parallel noise is independent. shared_by: names of the
    process groups whose ranks draw the same: those of tensor parallelism, who compute replicated gradients each for
    itself.
    """
    drawn = torch.randint(0, 2**63 - 1, (call.length,), dtype=torch.int64, device=call.device)
    here = rank()
    first = here + sum(min(group_ranks(name)) - here for name in call.shared_by)  # ranks are row-major in a mesh
    return drawn ^ (first * 0x2545F4914F6CDD1D & (2**63 - 1)) if first else drawn


def _implement(backend: ModuleType) -> dict[str, Callable]:
    """The ops over one backend: a module with the functions of `kernels/numerics/reference.py`."""

    def quantize(call: Quantize):
        if call.cached_as is not None:
            dtype, plain = call.cached_as, call._replace(cached_as=None)
            decided_by = dtype, *weight_cache.how_of(plain)
            return weight_cache.of_weight(call.x, decided_by, lambda: quantize(plain._replace(x=call.x.to(dtype))))
        spec = quantizer_named(call.quantizer)
        how = dict(transpose=call.transpose, mask=call.mask, stream=call.stream, **_seeds(call))
        return backend.quantize(call.x, spec, **how).tensors

    def quantize_pair(call: QuantizePair):
        row, column = quantizer_named(call.row_quantizer), quantizer_named(call.column_quantizer)
        rows, columns = backend.quantize_pair(call.dy, row, column, **_seeds(call))
        return (*rows[:3], *columns[:3])

    def requantize(call: Requantize):
        if call.cached_for is not None:
            return of_codes(call.cached_for, call, requantize)
        before, after = quantizer_named(call.source), quantizer_named(call.quantizer)
        source = Blocks(call.codes, call.scales, call.tensor_scale, None, before.format)
        return backend.requantize(source, before, after, stream=call.stream, **_seeds(call))[:3]

    def transposed(call: Transposed):
        if call.cached_for is not None:
            return of_codes(call.cached_for, call, transposed)
        spec = quantizer_named(call.quantizer)
        source = Blocks(call.codes, call.scales, call.tensor_scale, None, spec.format)
        return backend.transposed(source, spec)[:3]

    def of_codes(weight: torch.Tensor, call: Requantize | Transposed, make: Callable):
        plain = call._replace(cached_for=None)
        return weight_cache.of_codes(weight, call[:3], weight_cache.how_of(plain), lambda: make(plain))

    def decode(call: Decode):
        spec = quantizer_named(call.quantizer)
        check_format(spec.format, call.codes, call.scales)
        leading = call.codes.shape[:-1]
        codes, scales = (part.flatten(0, -2) for part in (call.codes, call.scales))
        values = backend.decode(Blocks(codes, scales, call.tensor_scale, None, spec.format), spec)
        return backend.unrotate(values, None, spec.rotation, call.columns).to(call.dtype).unflatten(0, leading)

    def scaled_mm(call: ScaledMM):
        left, right = map(_checked, operands_of(call))
        return ended(call, backend.scaled_mm(left, right, call.alpha, call.dtype))

    def scaled_grouped_mm(call: ScaledGroupedMM):
        left, right = map(_checked, operands_of(call))
        how = (call.ends, call.matrices, call.gemm, call.alpha, call.dtype)
        return ended(call, grouped.scaled_grouped_mm(left, right, *how, backend.scaled_mm))

    def ended(call: ScaledMM | ScaledGroupedMM, product: torch.Tensor):
        epilogue = epilogue_of(call)
        return product if epilogue is None else backend.unrotate(product, *epilogue)

    def separate_groups(call: SeparateGroups):
        return grouped.separate_groups(*call)

    def separate_matrices(call: SeparateMatrices):
        return grouped.separate_matrices(*call)

    def unrotate(call: Unrotate):
        return backend.unrotate(*call)

    products = (scaled_mm, scaled_grouped_mm, unrotate)
    functions = (quantize, quantize_pair, requantize, transposed, decode, *products, separate_groups, separate_matrices)
    return {f.__name__: f for f in functions}


def _seeds(call: Quantize | QuantizePair | Requantize) -> dict[str, torch.Tensor | None]:
    return {"seed": call.seed, "sign_seed": call.sign_seed}


def _checked(operand: Operand) -> Blocks:
    check_format(operand.format, operand.codes, operand.scales)
    return Blocks(operand.codes, operand.scales, operand.tensor_scale, None, operand.format)


def _fake_blocks(x: torch.Tensor, spec: Quantizer, rows, columns) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    full, facts = padded(columns, spec.block), OPERAND_FORMATS[spec.format]
    groups = 0 if spec.exact else full // facts.group
    return (
        x.new_empty((rows, full // facts.packed), dtype=facts.codes),
        x.new_empty((rows, groups), dtype=facts.scales),
        x.new_empty((int(facts.two_level),), dtype=torch.float32),
    )


def _fake_seed(call: Seed):
    return torch.empty((call.length,), dtype=torch.int64, device=call.device)


def _fake_quantize(call: Quantize):
    x, spec = call.x, quantizer_named(call.quantizer)
    rows, columns = reversed(x.shape) if call.transpose else x.shape
    bits = x.new_empty((rows, padded(columns, spec.block) // 8 if call.mask else 0), dtype=torch.uint8)
    return (*_fake_blocks(x, spec, rows, columns), bits)


def _fake_quantize_pair(call: QuantizePair):
    rows, columns = call.dy.shape
    return (
        *_fake_blocks(call.dy, quantizer_named(call.row_quantizer), rows, columns),
        *_fake_blocks(call.dy, quantizer_named(call.column_quantizer), columns, rows),
    )


def _fake_requantize(call: Requantize):
    return _fake_transpose(call, quantizer_named(call.source), quantizer_named(call.quantizer))


def _fake_transposed(call: Transposed):
    spec = quantizer_named(call.quantizer)
    return _fake_transpose(call, spec, spec)


def _fake_decode(call: Decode):
    check_format(quantizer_named(call.quantizer).format, call.codes, call.scales)
    return call.codes.new_empty((*call.codes.shape[:-1], call.columns), dtype=call.dtype)


def _fake_gathered(call: Gathered):
    check_format(quantizer_named(call.quantizer).format, call.codes, call.scales)
    return call.codes.new_empty((*call.codes.shape[:-1], call.columns), dtype=call.dtype)


def _gathered(call: Gathered):
    rows, columns = call.codes.shape[-2], call.columns
    raise WireError(
        f"A weight [{rows}, {columns}] is read in high precision, and ranks gathered its codes alone; expected a "
        "matmul that backend='quartet' compiles to read it. Compile the module that reads it, or keep the weight as it is: "
        "wire='high', or its name in exclude."
    )


def _fake_transpose(call: Requantize | Transposed, before: Quantizer, after: Quantizer):
    facts = check_format(before.format, call.codes, call.scales)
    return _fake_blocks(call.codes, after, call.codes.shape[1] * facts.packed, call.codes.shape[0])


def _fake_scaled_mm(call: ScaledMM):
    widths = [_width(operand) for operand in operands_of(call)]
    check(widths[0] == widths[1], lambda: f"scaled_mm contracts {widths[0]} with {widths[1]} columns")
    return _fake_product(call, call.a.shape[0], call.b.shape[0])


def _fake_scaled_grouped_mm(call: ScaledGroupedMM):
    for operand in operands_of(call):
        _width(operand)
    return _fake_product(call, *grouped.product_shape(call.a.shape[0], call.b.shape[0], call.matrices, call.gemm))


def _fake_product(call: ScaledMM | ScaledGroupedMM, rows, columns):
    return call.a.new_empty((rows, columns if call.columns is None else call.columns), dtype=call.dtype)


def _width(operand: Operand):
    """Elements in a row."""
    return operand.codes.shape[1] * check_format(operand.format, operand.codes, operand.scales).packed


def _fake_separate_groups(call: SeparateGroups):
    return _fake_separate(call.ends, call.x.shape[0], call.ends.shape[0], call.block)


def _fake_separate_matrices(call: SeparateMatrices):
    matrices, rows, _ = call.x.shape
    return _fake_separate(call.x, matrices * rows, matrices, call.block)


def _fake_separate(like: torch.Tensor, rows, groups: int, block: int):
    sizes = grouped.separate_rows(rows, groups, block), rows
    index, back = (like.new_empty((size,), dtype=torch.int64) for size in sizes)
    return index, back, like.new_empty((groups,), dtype=torch.int32)


def _fake_unrotate(call: Unrotate):
    return call.x.new_empty((call.x.shape[0], call.columns))


_FAKE: dict[str, Callable[..., Any]] = {
    "seed": _fake_seed,
    "quantize": _fake_quantize,
    "quantize_pair": _fake_quantize_pair,
    "requantize": _fake_requantize,
    "transposed": _fake_transposed,
    "decode": _fake_decode,
    "gathered": _fake_gathered,
    "scaled_mm": _fake_scaled_mm,
    "scaled_grouped_mm": _fake_scaled_grouped_mm,
    "separate_groups": _fake_separate_groups,
    "separate_matrices": _fake_separate_matrices,
    "unrotate": _fake_unrotate,
}

_library = torch.library.Library("quartet", "DEF")
for _name, _fake in _FAKE.items():
    _tags = (torch.Tag.nondeterministic_seeded,) if _name == "seed" else ()
    _library.define(f"{_name}{SCHEMAS[_name]}", tags=(*_tags, torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout))
    torch.library.register_fake(f"quartet::{_name}", by_name(_name, _fake), lib=_library)
_library.impl("seed", by_name("seed", _seed), "BackendSelect")
_library.impl("gathered", by_name("gathered", _gathered), "CompositeExplicitAutograd")
for _key, _backend in (("CUDA", reference), ("CPU", cpu)):
    for _name, _function in _implement(_backend).items():
        _library.impl(_name, by_name(_name, _function), _key)
