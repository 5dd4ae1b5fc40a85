"""Inductor lowerings of `torch.ops.quartet` on CUDA: each op to a Triton template of `gpu/templates`.

Everywhere else (CPU tensors, formats that round nothing) an op stays a call. The private parts of torch that this needs
are used here only. Supported: torch 2.11 to 2.13.

A quantized operand is one flat buffer of bytes, `[codes, scales, mask]` with each part padded to 16 bytes, and views of
it: a template has one output. Where the target has no FP4 tensor cores but FP8 ones, a product is one of E4M3 with a scale
a row; elsewhere a pointwise decoding to bf16, which is exact, and Inductor's own `mm`, with its choice of libraries and
templates.
"""

from __future__ import annotations

import functools
import hashlib
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import sympy
import torch

from ..formats import Quantizer
from ..formats import quantizer as quantizer_named
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


def _template(name: str, grid: Callable, variant: str = "") -> TritonTemplate:
    number_format = "{% if GROUP is defined and GROUP == 16 %}nvfp4{% else %}mxfp4{% endif %}"
    head = (
        "from quartet_compile.kernels.gpu import blocks, groups, product, rotation, rounding, scales\n"
        f"# quartet: {name} {number_format}, tile functions {_tiles_hash()}\n"
    )
    source = (_GPU / "templates" / f"{name}.py.jinja").read_text()
    return TritonTemplate(
        name=f"quartet_{name}{variant and '_' + variant}", grid=SymbolicGridFn(grid), source=head + source
    )


def _grid_of_groups(rows, columns, meta, *, cdiv):
    return (cdiv(rows * cdiv(columns, 32), meta["GROUPS"]), 1, 1)


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
_scaled_mm = _template("scaled_mm", _grid_of_products)
_scaled_mm_tma = _template("scaled_mm_tma", _grid_of_programs)
_decode_fp8 = _template("decode_fp8", _grid_of_rows)
_scaled_mm_fp8 = _template("scaled_mm_fp8", _grid_of_products)
_grouped_rows = _template("scaled_grouped_mm", _grid_of_row_groups, "rows")
_grouped_stacked = _template("scaled_grouped_mm", _grid_of_stacked_products, "stacked")
_unrotate = _template("unrotate", _grid_of_groups)


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


def _lower_quantize(x, quantizer, transpose, mask, stream, seed=None, sign_seed=None):
    spec = quantizer_named(quantizer)
    device = x.get_device()
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
        **_fields(quantizer_named(row_quantizer), "ROW_"),
        **_fields(quantizer_named(column_quantizer), "COLUMN_"),
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


def _lower_requantize(codes, scales, tensor_scale, source, quantizer, stream, seed, sign_seed):
    spec = quantizer_named(quantizer)
    device = codes.get_device()
    rows, columns = codes.get_size()[0], codes.get_size()[1] * 2
    flat = _Flat()
    flat.add(columns, _groups(rows) * 16)
    flat.add(columns, _groups(rows))
    blocked = flat.add_blocked(columns, _groups(rows), device)
    buffer = _select(
        _requantize,
        realize_inputs(codes, scales, seed, sign_seed),
        flat.layout(device),
        [rows, columns],
        _SQUARE_TILES,
        **_fields(spec),
        STREAM=stream,
        SOURCE_SHRINK=quantizer_named(source).shrink,
        BLOCKED=blocked,
        NATIVE=has_fp4(device),
    )
    new_codes, new_scales, *more = flat.views(buffer)
    if blocked:
        _remember_blocked(new_scales, *more)
    return new_codes, new_scales, _nothing(None, torch.float32, device)


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
    if multiplies_in_fp8(device) and a_scales.get_dtype() == torch.uint8:
        return _fp8_mm(a, a_scales, b, b_scales, alpha, dtype)
    if not has_fp4(device):
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
    """The product where there are no FP4 tensor cores: both operands decoded to bf16, exactly."""
    left = _decoded(a, a_scales)
    right = lowerings[aten.permute.default](_decoded(b, b_scales), [1, 0])
    if dtype == torch.bfloat16:
        product = lowerings[aten.mm.default](left, right)
    else:
        product = lowerings[aten.mm.dtype](left, right, torch.float32)
    if a_scales.get_dtype() == torch.float8_e4m3fn:
        scale = lowerings[aten.mul.Tensor](a_tensor_scale, b_tensor_scale)
        product = lowerings[aten.mul.Tensor](_cast(product, torch.float32), scale)
    if alpha != 1.0:
        product = lowerings[aten.mul.Tensor](_cast(product, torch.float32), alpha)
    return _cast(product, dtype)


def _cast(x: Any, dtype: torch.dtype) -> Any:
    return lowerings[torch.ops.prims.convert_element_type.default](x, dtype)


def _decoded(codes: Any, scales: Any) -> Any:
    """bf16[rows, n] of codes uint8[rows, n / 2] and their scales; one buffer for all products that read it."""
    memo = V.graph.__dict__.setdefault("quartet_decoded", {})
    codes, scales = realize_inputs(codes, scales)
    key = (_place(codes), _place(scales))
    if key not in memo:
        memo[key] = _decode(codes, scales)
    return memo[key]


def _decode(codes: Any, scales: Any) -> ir.TensorBox:
    rows, half = codes.get_size()
    load_codes, load_scales = codes.make_loader(), scales.make_loader()
    nvfp4 = scales.get_dtype() == torch.float8_e4m3fn
    group = 16 if nvfp4 else 32

    def value(index):
        row, column = index
        byte = ops.to_dtype(load_codes([row, ir.FloorDiv(column, 2)]), torch.int32)
        odd = ops.index_expr(ir.ModularIndexing(column, 1, 2), torch.int32)
        nibble = ops.bitwise_and(ops.bitwise_right_shift(byte, ops.mul(odd, ops.constant(4, torch.int32))), _int(15))
        magnitude = ops.bitwise_and(nibble, _int(7))
        normal = ops.add(ops.bitwise_left_shift(magnitude, _int(22)), _int(0x3F000000))
        bits = ops.where(ops.gt(magnitude, _int(1)), normal, ops.mul(magnitude, _int(0x3F000000)))
        sign = ops.bitwise_left_shift(ops.bitwise_and(nibble, _int(8)), _int(28))
        x = ops.to_dtype_bitcast(ops.bitwise_or(bits, sign), torch.float32, torch.int32)
        scale = load_scales([row, ir.FloorDiv(column, group)])
        if nvfp4:
            scale = ops.to_dtype(scale, torch.float32)
        else:
            field = ops.to_dtype(scale, torch.int32)
            shifted = ops.where(ops.eq(field, _int(0)), _int(1 << 22), ops.bitwise_left_shift(field, _int(23)))
            shifted = ops.where(ops.eq(field, _int(255)), _int(0x7FC00000), shifted)
            scale = ops.to_dtype_bitcast(shifted, torch.float32, torch.int32)
        return ops.to_dtype(ops.mul(x, scale), torch.bfloat16)

    result = ir.Pointwise.create(
        device=codes.get_device(), dtype=torch.bfloat16, inner_fn=value, ranges=[rows, half * 2]
    )
    result.realize()
    return result


def _int(value: int) -> Any:
    return ops.constant(value, torch.int32)


def _lower_unrotate(x, mask, rotation, columns):
    device = x.get_device()
    if x.maybe_get_name() in _unrotated():
        return x
    rows, full = x.get_size()
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
    )


# Registration


def _exact(*names: str) -> bool:
    return any(quantizer_named(name).exact for name in names)


def _rounds(op: str, args: tuple) -> bool:
    """Whether all formats of a call round to FP4: what rounds nothing has no template."""
    if op == "quantize":
        return not _exact(args[1])
    if op == "quantize_pair":
        return not _exact(args[1], args[2])
    if op == "requantize":
        return not _exact(args[3], args[4])
    if op in ("scaled_mm", "scaled_grouped_mm"):
        return args[0].get_dtype() == torch.uint8 and args[3].get_dtype() == torch.uint8
    return args[2] in (0, 32)


def _has_elements(x: Any) -> bool:
    return not any(V.graph.sizevars.statically_known_equals(size, 0) for size in x.get_size())


def _register(name: str, lower: Callable) -> None:
    op = getattr(quartet, name).default
    call = fallback_handler(op, add_to_fallback_set=False)

    @register_lowering(op, type_promotion_kind=None)
    def lowering(*args: Any, **kwargs: Any) -> Any:
        x = args[0]
        templated = x.get_device().type == "cuda" and not kwargs and _rounds(name, args) and _has_elements(x)
        return lower(*args) if templated else call(*args, **kwargs)


for _name, _lower in {
    "quantize": _lower_quantize,
    "quantize_pair": _lower_quantize_pair,
    "requantize": _lower_requantize,
    "scaled_mm": _lower_scaled_mm,
    "scaled_grouped_mm": _lower_scaled_grouped_mm,
    "unrotate": _lower_unrotate,
}.items():
    _register(_name, _lower)
