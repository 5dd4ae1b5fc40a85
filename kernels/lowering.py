"""Inductor lowerings of `torch.ops.quartet` on CUDA: each op to a Triton template of `gpu/templates`.

Everywhere else (CPU tensors, formats that round nothing, grouped products of other formats than MXFP4) an op stays a
call. The private parts of torch that this needs are used here only. Supported: torch 2.11 to 2.13.

MXFP4 in groups of 32 with scales rounded down has templates of its own; every other quantizer goes through one template,
`quantize_general`, after a first pass over the operand where there is a tensor scale.

A quantized operand is one flat buffer of bytes, `[codes, scales, mask]` with each part padded to 16 bytes, and views of
it: a template has one output. Where the target has no FP4 tensor cores but FP8 ones, a product is one of E4M3 with a scale
a row; elsewhere a pointwise decoding to bf16, which is exact, and Inductor's own `mm`, with its choice of libraries and
templates.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import sympy
import torch

from ..formats import E2M1_MAX, Quantizer
from ..formats import quantizer as quantizer_named
from . import philox
from .emulation import product_format
from .grouped import product_shape

try:
    from torch._inductor import config, ir
    from torch._inductor.lowering import empty_strided, fallback_handler, lowerings, register_lowering
    from torch._inductor.select_algorithm import (
        SymbolicGridFn,
        TritonTemplate,
        autotune_select_algorithm,
        realize_inputs,
    )
    from torch._inductor.virtualized import V, ops
except ImportError as error:
    raise ImportError(
        f"quartet_compile needs a part of Inductor that torch {torch.__version__} lacks: {error}. "
        "It is tested with torch 2.11 to 2.13: install one of them, or a newer quartet_compile."
    ) from error

aten = torch.ops.aten
quartet = torch.ops.quartet

_GPU = pathlib.Path(__file__).parent / "gpu"


def has_fp4(device: torch.device) -> bool:
    """Whether the device has FP4 tensor cores and conversions to E2M1: Blackwell, compute capability 10.0 and later."""
    return torch.cuda.get_device_capability(device)[0] >= 10


def multiplies_in_fp8(device: torch.device) -> bool:
    """Whether products go to FP8 tensor cores: Ada and Hopper (8.9 and 9.0) have these and none of FP4."""
    return torch.cuda.get_device_capability(device) in ((8, 9), (9, 0)) and product_format() == "fp8"


# Templates


@functools.cache
def _tiles_hash() -> str:
    """Of the tile functions: they are imported by the generated code, so its text must change with them."""
    digest = hashlib.sha256()
    for path in sorted(_GPU.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _template(name: str, grid: Callable, variant: str = "", op: str = "") -> TritonTemplate:
    """op: what the generated kernel says that it is, if not its template's name."""
    nvfp4 = "{% if GROUP is defined and GROUP == 16 %}nvfp4{% else %}mxfp4{% endif %}"
    number_format = "{% if E4M3 is defined and E4M3 %}mxfp8{% else %}" + nvfp4 + "{% endif %}"
    head = (
        "from quartet_compile.kernels.gpu import blocks, folds, general, groups, product, rotation, rounding, scales\n"
        f"# quartet: {op or name} {number_format}, tile functions {_tiles_hash()}\n"
    )
    source = (_GPU / "templates" / f"{name}.py.jinja").read_text()
    return TritonTemplate(
        name=f"quartet_{op or name}{variant and '_' + variant}", grid=SymbolicGridFn(grid), source=head + source
    )


def _grid_of_groups(rows, columns, meta, *, cdiv):
    return (cdiv(rows * cdiv(columns, 32), meta["GROUPS"]), 1, 1)


def _grid_of_rotations(rows, columns, meta, *, cdiv):
    return (cdiv(rows * cdiv(columns, meta["SIZE"]), meta["GROUPS"]), 1, 1)


def _grid_of_blocks(rows, blocks, meta, *, cdiv):
    if meta["TALL"]:
        return (cdiv(rows, meta["BLOCKS"]) * blocks, 1, 1)
    return (cdiv(rows * blocks, meta["BLOCKS"]), 1, 1)


def _grid_of_rows(rows, columns, meta, *, cdiv):
    return (cdiv(rows, meta["BLOCK_ROWS"]), 1, 1)


def _grid_of_tiles(rows, columns, meta, *, cdiv):
    return (cdiv(rows, meta["TILE_ROWS"]) * cdiv(columns, meta["TILE_COLUMNS"]), 1, 1)


def _grid_of_products(m, n, meta, *, cdiv):
    return (cdiv(m, meta["BLOCK_M"]) * cdiv(n, meta["BLOCK_N"]), 1, 1)


def _grid_of_row_groups(rows, columns, matrices, meta, *, cdiv):
    return ((cdiv(rows, meta["BLOCK_M"]) + matrices + 1) * cdiv(columns, meta["BLOCK_N"]), 1, 1)


def _grid_of_stacked_products(rows, columns, matrices, meta, *, cdiv):
    return (matrices * cdiv(rows, meta["BLOCK_M"]) * cdiv(columns, meta["BLOCK_N"]), 1, 1)


def _grid_of_programs(m, n, meta, *, cdiv, min):
    return (min(meta["PROGRAMS"], cdiv(m, meta["BLOCK_M"]) * cdiv(n, meta["BLOCK_N"])), 1, 1)


_quantize = _template("quantize", _grid_of_groups)
_quantize_transposed = _template("quantize_transposed", _grid_of_tiles)
_quantize_pair = _template("quantize_pair", _grid_of_tiles)
_requantize = _template("requantize", _grid_of_tiles)
_quantize_general = _template("quantize_general", _grid_of_blocks)
_requantize_general = _template("quantize_general", _grid_of_blocks, op="requantize_general")
_largest = _template("quantize_general", _grid_of_blocks, op="quantize_largest")
_largest_of_codes = _template("quantize_general", _grid_of_blocks, op="requantize_largest")
_scaled_mm = _template("scaled_mm", _grid_of_products)
_scaled_mm_tma = _template("scaled_mm_tma", _grid_of_programs)
_decode_fp8 = _template("decode_fp8", _grid_of_rows)
_scaled_mm_fp8 = _template("scaled_mm_fp8", _grid_of_products)
_grouped_rows = _template("scaled_grouped_mm", _grid_of_row_groups, "rows")
_grouped_stacked = _template("scaled_grouped_mm", _grid_of_stacked_products, "stacked")
_unrotate = _template("unrotate", _grid_of_rotations)


def _select(
    template: TritonTemplate,
    inputs: Sequence[Any],
    layout: ir.Layout,
    sizes: Sequence[Any],
    configurations: Sequence[dict[str, Any]],
    **constants: Any,
) -> ir.TensorBox:
    """The template with its first configuration; under `max_autotune` the fastest of all."""
    choices: list[Any] = []
    everything = config.max_autotune or config.max_autotune_gemm
    for configuration in configurations if everything else configurations[:1]:
        template.maybe_append_choice(
            choices, input_nodes=tuple(inputs), layout=layout, call_sizes=list(sizes), **configuration, **constants
        )
    chosen = autotune_select_algorithm(template.name, choices, list(inputs), layout)
    return chosen[0] if isinstance(chosen, tuple) else chosen  # torch 2.12 and later return the choice too


# Quantized operands


class _Flat:
    """The parts of quantized operands in one buffer of bytes."""

    def __init__(self) -> None:
        self.size: Any = sympy.Integer(0)
        self.parts: list[tuple[Any, Any, Any]] = []

    def add(self, rows: Any, columns: Any) -> None:
        self.parts.append((self.size, rows, columns))
        self.size = self.size + _up(rows * columns, 16)

    def add_blocked(self, rows: Any, groups: Any, device: torch.device) -> bool:
        """Scales a second time, as tensor memory takes them, if products of the device do and no block is part empty."""
        wanted = _through_tensor_memory(device) and V.graph.sizevars.statically_known_multiple_of(groups, 4)
        if wanted:
            self.add(_up(rows, 128), groups)
        return wanted

    def layout(self, device: torch.device) -> ir.FixedLayout:
        return ir.FixedLayout(device, torch.uint8, [self.size])

    def views(self, buffer: ir.TensorBox) -> list[ir.TensorBox]:
        view = lowerings[aten.as_strided.default]
        return [view(buffer, [rows, columns], [columns, 1], start) for start, rows, columns in self.parts]


def _up(size: Any, multiple: int) -> Any:
    """`size` rounded up to a multiple, as an expression of sympy's."""
    return V.graph.sizevars.simplify(ir.FloorDiv(size + multiple - 1, multiple) * multiple)


def _groups(columns: Any) -> Any:
    return V.graph.sizevars.simplify(ir.FloorDiv(columns + 31, 32))


def _nothing(rows: Any, dtype: torch.dtype, device: torch.device) -> ir.TensorBox:
    size = [0] if rows is None else [rows, 0]
    return empty_strided(size, None, dtype=dtype, device=device)


def _fields(spec: Quantizer, prefix: str = "") -> dict[str, Any]:
    fields = {
        "QUEST": spec.scale == "quest",
        "SHRINK": spec.shrink,
        "ROTATION": spec.rotation,
        "RANDOM_SIGNS": spec.random_signs,
        "STOCHASTIC": spec.stochastic,
    }
    return {prefix + name: value for name, value in fields.items()}


def _vector(dtype: torch.dtype) -> int:
    """Elements of 16 bytes."""
    return 16 // dtype.itemsize


def _seeds(seed: Any, sign_seed: Any) -> list[Any]:
    """Both seeds as inputs; an op that needs but one of them may lack the other."""
    one = seed if seed is not None else sign_seed
    return [] if one is None else realize_inputs(one, sign_seed if sign_seed is not None else one)


def _realize_fusably(x: ir.TensorBox) -> Any:
    """The input of a template, computed in it if it is cheap: what is pointwise joins the template's load."""
    x.realize()
    producer = x.data.data if isinstance(x.data, ir.StorageBox) else None
    if isinstance(producer, ir.ComputedBuffer):
        V.graph.invoke_quant_ops.add(producer.get_operation_name())
    return realize_inputs(x)


_GROUP_TILES = [dict(GROUPS=128, num_warps=4, num_stages=1), dict(GROUPS=256, num_warps=8, num_stages=1)]
_SQUARE_TILES = [
    dict(TILE_ROWS=64, TILE_COLUMNS=64, num_warps=4, num_stages=1),
    dict(TILE_ROWS=128, TILE_COLUMNS=64, num_warps=8, num_stages=1),
    dict(TILE_ROWS=64, TILE_COLUMNS=128, num_warps=8, num_stages=1),
]


def _is_plain_mxfp4(spec: Quantizer) -> bool:
    """Whether it is MXFP4 as the templates `quantize`, `quantize_pair` and `requantize` know it."""
    groups = (spec.elements, spec.group, spec.group_rows, spec.scale_format) == ("e2m1", 32, 1, "e8m0")
    return groups and spec.rotation in (0, 32) and spec.scale_rounding == "down" and spec.rounding != "eden"


def _lower_quantize(x, quantizer, transpose, mask, stream, seed=None, sign_seed=None):
    spec = quantizer_named(quantizer)
    device = x.get_device()
    if not _is_plain_mxfp4(spec):
        length, width = reversed(x.get_size()) if transpose else x.get_size()
        seeds = _seeds(seed, sign_seed) if spec.seeded else []
        source = _Source(inputs=[_realize_fusably(x)], device=device, transposed=transpose)
        return _quantize_blocks(source, length, width, spec, mask, stream, seeds)
    rows, columns = reversed(x.get_size()) if transpose else x.get_size()
    x = _realize_fusably(x)
    flat = _Flat()
    groups = _groups(columns)
    for width in (16, 1, 4) if mask else (16, 1):
        flat.add(rows, groups * width)
    blocked = flat.add_blocked(rows, groups, device)
    seeds = _seeds(seed, sign_seed) if spec.seeded else []
    constants = dict(
        _fields(spec), STREAM=stream, MASKED=mask, BLOCKED=blocked, NATIVE=has_fp4(device), SEEDED=bool(seeds)
    )
    if not transpose:
        constants["VEC"] = _vector(x.get_dtype())
    template, tiles = (_quantize_transposed, _SQUARE_TILES) if transpose else (_quantize, _GROUP_TILES)
    buffer = _select(template, [x, *seeds], flat.layout(device), x.get_size(), tiles, **constants)
    codes, scales, *more = flat.views(buffer)
    if blocked:
        _remember_blocked(scales, more.pop())
    bits = more[0] if mask else _nothing(rows, torch.uint8, device)
    return codes, scales, _nothing(None, torch.float32, device), bits


def _lower_quantize_pair(dy, row_quantizer, column_quantizer, seed, sign_seed):
    row, column = quantizer_named(row_quantizer), quantizer_named(column_quantizer)
    if not (_is_plain_mxfp4(row) and _is_plain_mxfp4(column)):
        for_dgrad = _lower_quantize(dy, row_quantizer, False, False, philox.DGRAD_DY, seed, seed)
        for_wgrad = _lower_quantize(dy, column_quantizer, True, False, philox.WGRAD_DY, seed, sign_seed)
        return *for_dgrad[:3], *for_wgrad[:3]
    device = dy.get_device()
    rows, columns = dy.get_size()
    dy = _realize_fusably(dy)
    flat = _Flat()
    for length, groups in ((rows, _groups(columns)), (columns, _groups(rows))):
        flat.add(length, groups * 16)
        flat.add(length, groups)
    row_blocked = flat.add_blocked(rows, _groups(columns), device)
    column_blocked = flat.add_blocked(columns, _groups(rows), device)
    buffer = _select(
        _quantize_pair,
        [dy, *realize_inputs(seed, sign_seed)],
        flat.layout(device),
        [rows, columns],
        _SQUARE_TILES,
        **_fields(row, "ROW_"),
        **_fields(column, "COLUMN_"),
        VEC=_vector(dy.get_dtype()),
        NATIVE=has_fp4(device),
        ROW_BLOCKED=row_blocked,
        COLUMN_BLOCKED=column_blocked,
    )
    row_codes, row_scales, column_codes, column_scales, *more = flat.views(buffer)
    if column_blocked:
        _remember_blocked(column_scales, more.pop())
    if row_blocked:
        _remember_blocked(row_scales, more.pop())
    empty = [_nothing(None, torch.float32, device) for _ in range(2)]
    return row_codes, row_scales, empty[0], column_codes, column_scales, empty[1]


def _lower_requantize(codes, scales, tensor_scale, source, quantizer, stream, seed=None, sign_seed=None):
    spec, before = quantizer_named(quantizer), quantizer_named(source)
    device = codes.get_device()
    rows, columns = codes.get_size()[0], codes.get_size()[1] * (1 if before.elements == "e4m3" else 2)
    seeds = _seeds(seed, sign_seed) if spec.seeded else []
    if not (_is_plain_mxfp4(spec) and _holds_plain_mxfp4(before)):
        inputs = realize_inputs(codes, scales, *([tensor_scale] if before.two_level else []))
        given = _Source(inputs=inputs, device=device, transposed=True, quantizer=before)
        return _quantize_blocks(given, columns, rows, spec, False, stream, seeds)[:3]
    flat = _Flat()
    flat.add(columns, _groups(rows) * 16)
    flat.add(columns, _groups(rows))
    blocked = flat.add_blocked(columns, _groups(rows), device)
    buffer = _select(
        _requantize,
        [*realize_inputs(codes, scales), *seeds],
        flat.layout(device),
        [rows, columns],
        _SQUARE_TILES,
        **_fields(spec),
        STREAM=stream,
        SOURCE_SHRINK=before.shrink,
        SEEDED=bool(seeds),
        BLOCKED=blocked,
        NATIVE=has_fp4(device),
    )
    new_codes, new_scales, *more = flat.views(buffer)
    if blocked:
        _remember_blocked(new_scales, *more)
    return new_codes, new_scales, _nothing(None, torch.float32, device)


# Blocks of every quantizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Source:
    """What is quantized: a matrix, or the codes and scales of a quantizer, with its tensor scale if it has one."""

    inputs: list[Any]
    device: torch.device
    transposed: bool
    quantizer: Quantizer | None = None

    def fields(self) -> dict[str, Any]:
        spec = self.quantizer or Quantizer()
        return {
            "TRANSPOSED": self.transposed,
            "DECODED": self.quantizer is not None,
            "SOURCE_E4M3": spec.elements == "e4m3",
            "SOURCE_TWO_LEVEL": spec.two_level,
            "SOURCE_GROUP": spec.group,
            "SOURCE_SHRINK": spec.shrink,
        }


def _tiles(block: int) -> list[dict[str, Any]]:
    """At most 32 elements a thread: with a whole block of 128 in each, EDEN's sums take all 255 registers and spill."""
    return [dict(BLOCKS=min(128, 4096 // block), num_warps=4, num_stages=1)]


def _quantize_blocks(
    source: _Source, length: Any, width: Any, spec: Quantizer, mask: bool, stream: int, seeds: list[Any]
) -> tuple[Any, Any, Any, Any]:
    """Codes, scales, tensor scale and mask of an operand [length, width], by the templates that know every quantizer."""
    per_row = V.graph.sizevars.simplify(ir.FloorDiv(width + spec.block - 1, spec.block))
    groups = per_row * (spec.block // spec.group)
    constants = dict(source.fields(), **_all_fields(spec), STREAM=stream, SEEDED=bool(seeds))
    constants["TALL"] = source.transposed or spec.square
    inputs = [*source.inputs, *seeds]
    decoded = source.quantizer is not None
    tensor_scale = _nothing(None, torch.float32, source.device)
    if spec.two_level:
        template = _largest_of_codes if decoded else _largest
        tensor_scale = _tensor_scale(template, inputs, source.device, length, per_row, spec, constants)
        inputs.append(realize_inputs(tensor_scale))
    bytes_a_group = spec.group if spec.elements == "e4m3" else spec.group // 2
    flat = _Flat()
    for width_of_part in (bytes_a_group, 1, spec.group // 8) if mask else (bytes_a_group, 1):
        flat.add(length, groups * width_of_part)
    blocked = spec.elements == "e2m1" and flat.add_blocked(length, groups, source.device)
    buffer = _select(
        _requantize_general if decoded else _quantize_general,
        inputs,
        flat.layout(source.device),
        [length, per_row],
        _tiles(spec.block),
        **constants,
        LARGEST=False,
        BYTES=bytes_a_group,
        MASKED=mask,
        BLOCKED=blocked,
        NATIVE=has_fp4(source.device),
    )
    codes, scales, *more = flat.views(buffer)
    codes, scales = _in_float8(codes, spec.elements == "e4m3"), _in_float8(scales, spec.two_level)
    if blocked:
        _remember_blocked(scales, more.pop())
    return codes, scales, tensor_scale, more[0] if mask else _nothing(length, torch.uint8, source.device)


def _lower_transposed(codes, scales, tensor_scale, quantizer):
    """The codes of square blocks transposed, a byte out of two rows, as kernels of Inductor's own."""
    group = quantizer_named(quantizer).group
    device = codes.get_device()
    rows, length = codes.get_size()[0], codes.get_size()[1] * 2
    groups = V.graph.sizevars.simplify(ir.FloorDiv(rows + group - 1, group))
    codes, of_scales = realize_inputs(codes, scales)
    load_codes, load_scales = codes.make_loader(), _as_bytes(of_scales).make_loader()

    def nibble(row: Any, column: Any) -> Any:
        inside = ops.lt(ops.index_expr(row, torch.int64), ops.index_expr(rows, torch.int64))
        byte = ops.masked(inside, lambda: load_codes([row, ir.FloorDiv(column, 2)]), 0)
        odd = ops.index_expr(ir.ModularIndexing(column, 1, 2), torch.int32)
        return _nibble(ops.to_dtype(byte, torch.int32), odd)

    def code(index: Any) -> Any:
        row, byte = index
        high = ops.bitwise_left_shift(nibble(2 * byte + 1, row), _int(4))
        return ops.to_dtype(ops.bitwise_or(nibble(2 * byte, row), high), torch.uint8)

    made = [
        ir.Pointwise.create(device=device, dtype=torch.uint8, inner_fn=function, ranges=[length, width])
        for function, width in (
            (code, groups * (group // 2)),
            (lambda index: load_scales([index[1] * group, ir.FloorDiv(index[0], group)]), groups),
        )
    ]
    for x in made:
        x.realize()
    new_scales = _in_float8(made[1], scales.get_dtype() == torch.float8_e4m3fn)
    return made[0], new_scales, lowerings[aten.clone.default](tensor_scale)


def _all_fields(spec: Quantizer) -> dict[str, Any]:
    return {
        "BLOCK": spec.block,
        "GROUP": spec.group,
        "GROUP_ROWS": spec.group_rows,
        "ROTATION": spec.rotation,
        "RANDOM_SIGNS": spec.random_signs,
        "LIFTS": spec.scale == "absmax" and not spec.two_level,
        "E4M3": spec.elements == "e4m3",
        "TWO_LEVEL": spec.two_level,
        "SCALE": repr(spec.scale),
        "SCALE_ROUNDING": repr(spec.scale_rounding),
        "SHRINK": spec.shrink,
        "TOP": E2M1_MAX / spec.headroom,
        "ROUNDING": repr(spec.rounding),
    }


def _in_float8(x: ir.TensorBox, wanted: bool) -> ir.TensorBox:
    return lowerings[aten.view.dtype](x, torch.float8_e4m3fn) if wanted else x


def _tensor_scale(
    template: TritonTemplate,
    inputs: list[Any],
    device: torch.device,
    length: Any,
    per_row: Any,
    spec: Quantizer,
    constants: dict[str, Any],
) -> ir.TensorBox:
    """float32[1]: the largest magnitude of the valid groups over `largest_scale` and over 6 / headroom; 1 for 0.

    The template finds the largest of each program, Inductor that of all. Divisions in float64, rounded to float32, are
    those of float32 correctly rounded, which a GPU's own are not.
    """
    tiles = _tiles(spec.block)
    blocks = tiles[0]["BLOCKS"]
    programs = _up(length, blocks) * per_row if constants["TALL"] else _up(length * per_row, blocks)
    programs = V.graph.sizevars.simplify(ir.FloorDiv(programs, blocks))
    layout = ir.FixedLayout(device, torch.float32, [programs])
    partial = _select(template, inputs, layout, [length, per_row], tiles, **constants, LARGEST=True)
    of_all = lowerings[aten.amax.default](partial, [0], True)
    load = of_all.make_loader()

    def divided(x: Any, by: float) -> Any:
        exact = ops.truediv(ops.to_dtype(x, torch.float64), ops.constant(_float32(by), torch.float64))
        return ops.to_dtype(exact, torch.float32)

    def value(index: Any) -> Any:
        largest = load(index)
        scale = divided(divided(largest, spec.largest_scale), E2M1_MAX / spec.headroom)
        return ops.where(ops.eq(largest, ops.constant(0.0, torch.float32)), ops.constant(1.0, torch.float32), scale)

    result = ir.Pointwise.create(device=device, dtype=torch.float32, inner_fn=value, ranges=[1])
    result.realize()
    return result


def _float32(value: float) -> float:
    return torch.tensor(value, dtype=torch.float32).item()


def _holds_plain_mxfp4(spec: Quantizer) -> bool:
    """Whether `requantize` can decode its blocks: E2M1 in groups of 32 columns with E8M0 scales, padded to them."""
    return spec.elements == "e2m1" and not spec.two_level


# Products


_PRODUCT_TILES = [
    dict(BLOCK_M=128, BLOCK_N=64, BLOCK_K=256, num_warps=8, num_stages=2),
    dict(BLOCK_M=128, BLOCK_N=128, BLOCK_K=128, num_warps=8, num_stages=3),
]
"""For operands through registers: compute capability 12, and what descriptors can't describe. 128 columns have registers
for themselves, not for a long epilogue as well."""

_TMA_TILES = [
    dict(BLOCK_M=128, BLOCK_N=128, BLOCK_K=256, num_warps=8, num_stages=3, WARP_SPECIALIZE=False),
    dict(BLOCK_M=128, BLOCK_N=256, BLOCK_K=256, num_warps=8, num_stages=3, WARP_SPECIALIZE=False),
    dict(BLOCK_M=128, BLOCK_N=128, BLOCK_K=256, num_warps=4, num_stages=3, WARP_SPECIALIZE=True),
]
"""For compute capability 10: accumulator, operands and scales fit the 512 columns of tensor memory. Not 64 rows: the
product would become one of bf16; nor 256 columns warp-specialised: the compiler would give an empty kernel."""


def _lower_scaled_mm(a, a_scales, a_tensor_scale, b, b_scales, b_tensor_scale, alpha, dtype):
    device = a.get_device()
    formats = [(codes.get_dtype(), scales.get_dtype()) for codes, scales in ((a, a_scales), (b, b_scales))]
    if formats == [(torch.uint8, torch.uint8)] * 2 and multiplies_in_fp8(device):
        return _fp8_mm(a, a_scales, b, b_scales, alpha, dtype)
    if formats[0] != formats[1] or a.get_dtype() != torch.uint8 or not has_fp4(device):
        return _decoded_mm(a, a_scales, a_tensor_scale, b, b_scales, b_tensor_scale, alpha, dtype)
    nvfp4 = a_scales.get_dtype() == torch.float8_e4m3fn
    a, a_scales, b, b_scales = realize_inputs(a, a_scales, b, b_scales)
    m, n, k = a.get_size()[0], b.get_size()[0], a.get_size()[1] * 2
    columns, mask = n, None
    following = None if nvfp4 else _following_unrotate()
    if following is not None:
        mask, columns = following
    extra = realize_inputs(a_tensor_scale, b_tensor_scale) if nvfp4 else []
    extra += [] if mask is None else [realize_inputs(mask)]
    constants = dict(
        ALPHA=alpha,
        GROUP=16 if nvfp4 else 32,
        GROUP_M=8,
        TENSOR_SCALED=nvfp4,
        UNROTATED=following is not None,
        MASKED=mask is not None,
    )
    template, tiles = _scaled_mm, _PRODUCT_TILES
    if _through_tensor_memory(device) and _describable(a) and _describable(b):
        template, tiles = _scaled_mm_tma, _TMA_TILES
        a_scales, b_scales = _blocked(a_scales), _blocked(b_scales)
        constants |= dict(PROGRAMS=torch.cuda.get_device_properties(device).multi_processor_count, FLATTEN=False)
    result = _select(
        template,
        [a, a_scales, b, b_scales, *extra],
        ir.FixedLayout(device, dtype, [m, columns]),
        [m, n],
        [
            dict(t, STAGES=t["num_stages"], EVEN_K=V.graph.sizevars.statically_known_multiple_of(k, t["BLOCK_K"]))
            for t in tiles
        ],
        **constants,
    )
    if following is not None:
        _unrotated().add(result.get_name())
    return result


def _describable(codes: Any) -> bool:
    """Whether a tensor descriptor can describe the codes: contiguous rows, all on 16 bytes."""
    known = V.graph.sizevars.statically_known_multiple_of
    stride, offset = codes.get_stride(), codes.get_layout().offset
    return stride[1] == 1 and known(stride[0], 16) and known(offset, 16)


def _through_tensor_memory(device: torch.device) -> bool:
    """Whether products read their operands by descriptors and their scales from tensor memory: compute capability 10."""
    return torch.cuda.get_device_capability(device)[0] == 10


def _blocks_by_scales() -> dict[tuple, Any]:
    """Scales in the blocks of 128 rows by 4 groups that tensor memory takes (see `gpu/scales.py`), by the scales."""
    return V.graph.__dict__.setdefault("quartet_blocked", {})


def _remember_blocked(scales: Any, blocked: Any) -> None:
    rows, columns = blocked.get_size()
    _blocks_by_scales()[_place(realize_inputs(scales))] = realize_inputs(
        lowerings[aten.view.default](blocked, [rows * columns])
    )


def _blocked(scales: Any) -> Any:
    """The blocks of scales [rows, groups]: those that came with them, or a copy, one for all products that read them."""
    memo = _blocks_by_scales()
    key = _place(scales)
    if key not in memo:
        rows, groups = scales.get_size()
        full_rows, full_groups = _up(rows, 128), _up(groups, 4)
        x = lowerings[aten.constant_pad_nd.default](_box(scales), [0, full_groups - groups, 0, full_rows - rows], 0)
        x = lowerings[aten.view.default](x, [ir.FloorDiv(full_rows, 128), 4, 32, ir.FloorDiv(full_groups, 4), 4])
        x = lowerings[aten.clone.default](lowerings[aten.permute.default](x, [0, 3, 2, 1, 4]))
        memo[key] = realize_inputs(lowerings[aten.view.default](x, [full_rows * full_groups]))
    return memo[key]


def _place(x: Any) -> tuple:
    """Where a realized tensor lies: its buffer, and its part of it."""
    layout = x.get_layout()
    return x.get_name(), str(layout.offset), str(layout.size), str(layout.stride)


def _box(x: Any) -> ir.TensorBox:
    return x if isinstance(x, ir.TensorBox) else ir.TensorBox(x)


def _unrotated() -> set[str]:
    """Names of the products that have been rotated back already."""
    return V.graph.__dict__.setdefault("quartet_unrotated", set())


def _following_unrotate() -> tuple[Any, Any] | None:
    """The mask and the number of columns of the `unrotate` that alone reads the product being lowered, else None."""
    users = list(V.graph.current_node.users)
    if len(users) != 1 or users[0].target is not quartet.unrotate.default:
        return None
    _, mask, rotation, columns = users[0].args
    if rotation != 32 or (mask is not None and mask not in V.graph.env):
        return None
    if isinstance(columns, torch.fx.Node):
        columns = V.graph.env.get(columns)
    return None if columns is None else (V.graph.env.get(mask), sympy.sympify(columns))


_GROUPED_TILES = {  # by major compute capability; 8 warps spill on 10
    10: [dict(BLOCK_M=128, BLOCK_N=64, BLOCK_K=128, num_warps=4, num_stages=2)],
    12: [dict(BLOCK_M=128, BLOCK_N=64, BLOCK_K=128, num_warps=8, num_stages=2)],
}
_GROUPED_TILES_BF16 = [dict(BLOCK_M=64, BLOCK_N=64, BLOCK_K=64, num_warps=4, num_stages=2)]


def _lower_scaled_grouped_mm(
    a, a_scales, a_tensor_scale, b, b_scales, b_tensor_scale, ends, matrices, gemm, alpha, dtype
):
    """The products of all groups in one kernel: on FP4 tensor cores, or of operands that it decodes to bf16."""
    device = a.get_device()
    a, a_scales, b, b_scales, ends = realize_inputs(a, a_scales, b, b_scales, ends)
    rows, columns = product_shape(a.get_size()[0], b.get_size()[0], matrices, gemm)
    following = _following_unrotate()
    mask, width = following or (None, columns)
    stacked = gemm == "wgrad"
    result = _select(
        _grouped_stacked if stacked else _grouped_rows,
        [a, a_scales, b, b_scales, ends, *([] if mask is None else [realize_inputs(mask)])],
        ir.FixedLayout(device, dtype, [rows, width]),
        [a.get_size()[0], columns, matrices],
        [
            dict(t, STAGES=t["num_stages"])
            for t in _GROUPED_TILES.get(torch.cuda.get_device_capability(device)[0], _GROUPED_TILES_BF16)
        ],
        ALPHA=alpha,
        STACKED=stacked,
        SIDE_BY_SIDE=gemm == "dgrad",
        MATRICES=matrices,
        WIDTH=2 ** matrices.bit_length(),
        NATIVE=has_fp4(device),
        UNROTATED=following is not None,
        MASKED=mask is not None,
    )
    if following is not None:
        _unrotated().add(result.get_name())
    return result


_FP8_TILES = {  # 256 columns would spill: the sums of 128 products need registers beside those of all
    8: [dict(BLOCK_M=128, BLOCK_N=128, BLOCK_K=128, num_warps=8, num_stages=3)],
    9: [dict(BLOCK_M=128, BLOCK_N=128, BLOCK_K=128, num_warps=8, num_stages=4)],
}


def _fp8_mm(a, a_scales, b, b_scales, alpha, dtype):
    """The product on FP8 tensor cores: MXFP4 operands are nearly always exact in E4M3 with a scale a row."""
    device = a.get_device()
    major = torch.cuda.get_device_capability(device)[0]
    a, a_scales, b, b_scales = realize_inputs(a, a_scales, b, b_scales)
    m, n, k = a.get_size()[0], b.get_size()[0], a.get_size()[1] * 2
    return _select(
        _scaled_mm_fp8,
        [a, a_scales, b, b_scales, *_in_fp8(a, a_scales), *_in_fp8(b, b_scales)],
        ir.FixedLayout(device, dtype, [m, n]),
        [m, n],
        [
            dict(t, STAGES=t["num_stages"], EVEN_K=V.graph.sizevars.statically_known_multiple_of(k, t["BLOCK_K"]))
            for t in _FP8_TILES[major]
        ],
        ALPHA=alpha,
        GROUP_M=8,
        DESCRIPTORS=major == 9,
    )


def _in_fp8(codes: Any, scales: Any) -> list[Any]:
    """E4M3 values uint8[rows, n], the row's scale and whether it isn't exact, uint8[rows, 1] each; one buffer for all
    products that read them."""
    memo = V.graph.__dict__.setdefault("quartet_fp8", {})
    key = (_place(codes), _place(scales))
    if key not in memo:
        rows, columns = codes.get_size()[0], codes.get_size()[1] * 2
        flat = _Flat()
        flat.add(rows, columns)
        flat.add(rows, 1)
        flat.add(rows, 1)
        tile = dict(BLOCK_ROWS=4, BLOCK_COLUMNS=1024, BLOCK_SCALES=128, num_warps=4, num_stages=2)
        buffer = _select(_decode_fp8, [codes, scales], flat.layout(codes.get_device()), [rows, columns], [tile])
        memo[key] = realize_inputs(*flat.views(buffer))
    return memo[key]


def _decoded_mm(a, a_scales, a_tensor_scale, b, b_scales, b_tensor_scale, alpha, dtype):
    """The product where no tensor cores take the operands as they are: both decoded to bf16, exactly."""
    left = _decoded(a, a_scales)
    right = lowerings[aten.permute.default](_decoded(b, b_scales), [1, 0])
    if dtype == torch.bfloat16:
        product = lowerings[aten.mm.default](left, right)
    else:
        product = lowerings[aten.mm.dtype](left, right, torch.float32)
    for scales, tensor_scale in ((a_scales, a_tensor_scale), (b_scales, b_tensor_scale)):
        if scales.get_dtype() == torch.float8_e4m3fn:
            product = lowerings[aten.mul.Tensor](_cast(product, torch.float32), tensor_scale)
    if alpha != 1.0:
        product = lowerings[aten.mul.Tensor](_cast(product, torch.float32), alpha)
    return _cast(product, dtype)


def _cast(x: Any, dtype: torch.dtype) -> Any:
    return lowerings[torch.ops.prims.convert_element_type.default](x, dtype)


def _decoded(codes: Any, scales: Any) -> Any:
    """bf16[rows, n] of codes and their scales, without the tensor scale; one buffer for all products that read it."""
    memo = V.graph.__dict__.setdefault("quartet_decoded", {})
    codes, scales = realize_inputs(codes, scales)
    key = (_place(codes), _place(scales))
    if key not in memo:
        memo[key] = _decode(codes, scales)
    return memo[key]


def _decode(codes: Any, scales: Any) -> ir.TensorBox:
    rows, width = codes.get_size()
    e2m1, nvfp4 = codes.get_dtype() == torch.uint8, scales.get_dtype() == torch.float8_e4m3fn
    load_codes, load_scales = (_as_bytes(x).make_loader() for x in (codes, scales))
    group = 16 if nvfp4 else 32

    def value(index):
        row, column = index
        if e2m1:
            byte = ops.to_dtype(load_codes([row, ir.FloorDiv(column, 2)]), torch.int32)
            odd = ops.index_expr(ir.ModularIndexing(column, 1, 2), torch.int32)
            x = _e2m1_value(_nibble(byte, odd))
        else:
            x = _e4m3_value(ops.to_dtype(load_codes([row, column]), torch.int32))
        scale = ops.to_dtype(load_scales([row, ir.FloorDiv(column, group)]), torch.int32)
        return ops.to_dtype(ops.mul(x, _e4m3_value(scale) if nvfp4 else _e8m0_value(scale)), torch.bfloat16)

    columns = width * 2 if e2m1 else width
    result = ir.Pointwise.create(
        device=codes.get_device(), dtype=torch.bfloat16, inner_fn=value, ranges=[rows, columns]
    )
    result.realize()
    return result


def _as_bytes(x: Any) -> Any:
    return lowerings[aten.view.dtype](_box(x), torch.uint8) if x.get_dtype() == torch.float8_e4m3fn else x


def _nibble(byte: Any, odd: Any) -> Any:
    return ops.bitwise_and(ops.bitwise_right_shift(byte, ops.mul(odd, _int(4))), _int(15))


def _e2m1_value(nibble: Any) -> Any:
    magnitude = ops.bitwise_and(nibble, _int(7))
    normal = ops.add(ops.bitwise_left_shift(magnitude, _int(22)), _int(0x3F000000))
    bits = ops.where(ops.gt(magnitude, _int(1)), normal, ops.mul(magnitude, _int(0x3F000000)))
    sign = ops.bitwise_left_shift(ops.bitwise_and(nibble, _int(8)), _int(28))
    return _float(ops.bitwise_or(bits, sign))


def _e4m3_value(byte: Any) -> Any:
    """With the bits of E4M3 where float32 has its own, a multiply by the ratio of the biases is left: 2^120."""
    magnitude = ops.bitwise_and(byte, _int(0x7F))
    sign = ops.bitwise_left_shift(ops.bitwise_and(byte, _int(0x80)), _int(24))
    bits = ops.bitwise_or(ops.bitwise_left_shift(magnitude, _int(20)), sign)
    value = ops.mul(_float(bits), ops.constant(2.0**120, torch.float32))
    return ops.where(ops.eq(magnitude, _int(0x7F)), ops.constant(float("nan"), torch.float32), value)


def _e8m0_value(byte: Any) -> Any:
    bits = ops.where(ops.eq(byte, _int(0)), _int(1 << 22), ops.bitwise_left_shift(byte, _int(23)))
    return _float(ops.where(ops.eq(byte, _int(255)), _int(0x7FC00000), bits))


def _float(bits: Any) -> Any:
    return ops.to_dtype_bitcast(bits, torch.float32, torch.int32)


def _int(value: int) -> Any:
    return ops.constant(value, torch.int32)


def _lower_unrotate(x, mask, rotation, columns):
    device = x.get_device()
    if x.maybe_get_name() in _unrotated():
        return x
    rows, full = x.get_size()
    size = rotation or (32 if V.graph.sizevars.statically_known_multiple_of(full, 32) else 16)
    x = _realize_fusably(x)
    inputs = [x] if mask is None else [x, realize_inputs(mask)]
    return _select(
        _unrotate,
        inputs,
        ir.FixedLayout(device, x.get_dtype(), [rows, columns]),
        [rows, full],
        _GROUP_TILES,
        VEC=_vector(x.get_dtype()),
        MASKED=mask is not None,
        ROTATION=rotation,
        SIZE=size,
    )


# Registration


def _has_template(op: str, args: tuple) -> bool:
    """Whether templates can do a call: what rounds nothing has none, nor have grouped products but those of MXFP4."""
    if op in _QUANTIZERS:
        return not any(quantizer_named(args[index]).exact for index in _QUANTIZERS[op])
    dtypes = {args[index].get_dtype() for index in (0, 1, 3, 4)} if "mm" in op else set()
    if op == "scaled_mm":
        return torch.float32 not in dtypes
    if op == "scaled_grouped_mm":
        return dtypes == {torch.uint8}
    return op != "transposed" or args[0].get_dtype() == torch.uint8


_QUANTIZERS = {"quantize": (1,), "quantize_pair": (1, 2), "requantize": (3, 4)}
"""Which arguments of an op name quantizers."""


def _has_elements(x: Any) -> bool:
    return not any(V.graph.sizevars.statically_known_equals(size, 0) for size in x.get_size())


def _register(name: str, lower: Callable) -> None:
    op = getattr(quartet, name).default
    call = fallback_handler(op, add_to_fallback_set=False)

    @register_lowering(op, type_promotion_kind=None)
    def lowering(*args: Any, **kwargs: Any) -> Any:
        x = args[0]
        templated = x.get_device().type == "cuda" and not kwargs and _has_template(name, args) and _has_elements(x)
        return lower(*args) if templated else call(*args, **kwargs)


for _name, _lower in {
    "quantize": _lower_quantize,
    "quantize_pair": _lower_quantize_pair,
    "requantize": _lower_requantize,
    "transposed": _lower_transposed,
    "scaled_mm": _lower_scaled_mm,
    "scaled_grouped_mm": _lower_scaled_grouped_mm,
    "unrotate": _lower_unrotate,
}.items():
    _register(_name, _lower)
