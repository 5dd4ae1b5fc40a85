"""Each op as Inductor lowers it for a GPU, in Triton's interpreter, beside the reference (see interpreted_module)."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import torch_scaled_mm
from interpreted_module import (
    compile_interpreted,
)
from torch._subclasses import FakeTensorMode

from quartet_compile.kernels import lowering
from quartet_compile.kernels.architectures import LIBRARY_VARIABLE
from quartet_compile.kernels.numerics import grouped, philox, reference
from quartet_compile.kernels.numerics.reference import Blocks
from quartet_compile.kernels.quantizer import quantizer

ops = torch.ops.quartet
SEED, SIGN_SEED = torch.tensor(0x0123456789ABCDEF), torch.tensor(-0x0FEDCBA987654321)


def operand(rows: int, columns: int, dtype: torch.dtype, layout: str = "rows") -> torch.Tensor:
    """Values of many magnitudes with special ones among them. layout: "rows", "columns", or "expanded" (stride 0); "mild",
    within the range of one tensor's E4M3 scales; "tiny", "zeros" or "nothing finite"; "huge", where a rotation
    overflows in some groups of a block; "sparse", ones and zeros of either sign."""
    generator = torch.Generator().manual_seed(rows * 1009 + columns)
    if layout == "sparse":
        zero = torch.rand(rows, columns, generator=generator) < 0.9
        return (torch.randn(rows, columns, generator=generator).sign() * torch.where(zero, 0.0, 1.0)).to(dtype)
    if layout in ("mild", "tiny"):
        spread = torch.randint(-15, 3, (rows, (columns + 15) // 16), generator=generator).repeat_interleave(16, 1)
        x = torch.randn(rows, columns, generator=generator) * torch.exp2(spread[:, :columns].float())
        x *= 2.0**-80 if layout == "tiny" else 1
        x[rows // 2], x[0, :16] = 0, -0.0
        if layout == "mild":
            x[rows // 3, columns // 2], x[-1, -1] = float("nan"), -float("inf")
        return x.to(dtype)
    if layout == "huge":
        return (torch.randn(rows, columns, generator=generator) * 2.0**123).to(dtype)
    if layout in ("zeros", "nothing finite"):
        return torch.full((rows, columns), 0.0 if layout == "zeros" else float("inf"), dtype=dtype)
    x = torch.randn(rows, columns, generator=generator)
    x *= torch.exp2(torch.randint(-30, 12, (rows, 1), generator=generator).float())
    if rows > 20:
        x[rows - 3] = 2.0 ** (127.0 - torch.arange(columns) % 16)  # sums that overflow, and some that don't
        x[rows - 5] = 2.0 ** (124.0 - torch.arange(columns) % 7)
    special = [float("nan"), float("inf"), -0.0, 2.0**-100, 2.0**-127, -(2.0**-63), 0.25, 6.0]
    for index, value in enumerate(special):
        x[(index * 5) % rows, (index * 37) % columns] = value
    x[rows // 2] = 0
    x = x.to(dtype)
    if layout == "columns":
        return x.t().contiguous().t()
    return x[:1].expand(rows, columns) if layout == "expanded" else x


def quantize(name: str, transpose: bool, mask: bool, x: torch.Tensor) -> tuple[Callable, list, list]:
    spec = quantizer(name)
    seeds = [SEED, SIGN_SEED] if spec.seeded else [None, None]
    made = reference.quantize(
        x, spec, transpose=transpose, mask=mask, stream=philox.WGRAD_DY, seed=SEED, sign_seed=SIGN_SEED
    )

    def call(x: torch.Tensor) -> tuple:
        return ops.quantize(x, name, transpose, mask, philox.WGRAD_DY, *seeds)

    return call, [x], list(made.tensors)


def quantize_pair(row: str, column: str, x: torch.Tensor) -> tuple[Callable, list, list]:
    pair = reference.quantize_pair(x, quantizer(row), quantizer(column), seed=SEED, sign_seed=SIGN_SEED)
    return (
        lambda x, seed, signs: ops.quantize_pair(x, row, column, seed, signs),
        [x, SEED, SIGN_SEED],
        [*pair[0][:3], *pair[1][:3]],
    )


def requantize(source: str, name: str, x: torch.Tensor) -> tuple[Callable, list, list]:
    before, after = quantizer(source), quantizer(name)
    held = reference.quantize(x, before, seed=SEED, sign_seed=SIGN_SEED)
    made = reference.requantize(held, before, after, stream=philox.DGRAD_W, seed=SEED, sign_seed=SIGN_SEED)
    return (
        lambda *blocks: ops.requantize(*blocks, source, name, philox.DGRAD_W, SEED, SIGN_SEED),
        list(held[:3]),
        list(made[:3]),
    )


def transposed(name: str, x: torch.Tensor) -> tuple[Callable, list, list]:
    held = reference.quantize(x, quantizer(name))
    made = reference.transposed(held, quantizer(name))
    return lambda *blocks: ops.transposed(*blocks, name), list(held[:3]), list(made[:3])


def run_codes(case: str, arguments: tuple, x: tuple, target: str) -> dict[str, Any]:
    """Outputs that differ from the reference's, by index, and which of our templates ran."""
    call, inputs, expected = globals()[case](*arguments, operand(*x))
    compiled = compile_interpreted(call, target)
    with torch.no_grad(), mock.patch.object(lowering.quantize, "LEAST_PROGRAMS", 1):  # strips of several tiles
        made = compiled(*inputs)
    wrong = {
        index: int((got != want).sum()) if got.shape == want.shape else f"{tuple(got.shape)}, not {tuple(want.shape)}"
        for index, (got, want) in enumerate(zip(map(raw, made), map(raw, expected), strict=True))
        if not torch.equal(got, want)
    }
    return {"wrong": wrong, "templates": templates(compiled)}


def raw(x: torch.Tensor) -> torch.Tensor:
    """Bytes of 8-bit floats; anything else as it is."""
    return x.view(torch.uint8) if x.dtype == torch.float8_e4m3fn else x


def templates(compiled: Any) -> list[str]:
    """The ops whose templates the generated modules have, in order."""
    lines = (line for module in compiled.modules for line in module.source.splitlines())
    return [line.split()[2] for line in lines if line.startswith("# quartet: ")]


def mxfp4(rows: int, columns: int, seed: int) -> Blocks:
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    return reference.quantize(x, quantizer("mxfp4-quest"))


def mxfp8(rows: int, columns: int, seed: int) -> Blocks:
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    return reference.quantize(x, quantizer("mxfp8"))


def mixed(rows: int, columns: int, seed: int) -> Blocks:
    """An operand of each format in turn, by its seed."""
    return (nvfp4 if seed % 2 else mxfp4)(rows, columns, seed)


def mxfp4_wide(rows: int, columns: int, seed: int) -> Blocks:
    """With a row whose scales lie further apart than E4M3 reaches, and a row of zeros."""
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    x[0, :32] *= 2.0**20
    x[rows - 1] = 0
    return reference.quantize(x, quantizer("mxfp4-quest"))


def nvfp4(rows: int, columns: int, seed: int) -> Blocks:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (rows, columns // 2), generator=generator, dtype=torch.uint8)
    scales = torch.randint(8, 120, (rows, columns // 16), generator=generator, dtype=torch.uint8)
    return Blocks(codes, scales.view(torch.float8_e4m3fn), torch.rand(1, generator=generator), None, "nvfp4")


def run_product(
    made_by: str, shape: tuple[int, int, int], alpha: float, dtype: torch.dtype, nan: bool, target: str
) -> dict[str, Any]:
    """The product beside the reference's in float32, and the sum of the magnitudes that went into each output."""
    m, n, k = shape
    a, b = globals()[made_by](m, k, 1), globals()[made_by](n, k, 2)
    if nan:
        a.scales.view(torch.uint8)[1, 0] = 255
    left, right = a.format, b.format
    compiled = compile_interpreted(lambda *x: ops.scaled_mm(*x[:3], left, *x[3:], right, alpha, dtype), target)
    with torch.no_grad():
        made = compiled(*a[:3], *b[:3])
    x, y = (reference.decode(blocks, quantizer("mxfp4-quest")) for blocks in (a, b))
    return {
        "made": made,
        "expected": reference.scaled_mm(a, b, alpha, torch.float32),
        "magnitude": alpha * (x.abs() @ y.abs().t()),
        "templates": templates(compiled),
    }


def run_library_product(
    made_by: str, shape: tuple[int, int, int], alpha: float, dtype: torch.dtype, target: str
) -> dict[str, Any]:
    """`run_product` by torch's library alone, which is the model of it in `torch_scaled_mm`; what that was called with, and
    what the library takes fake tensors for."""
    with mock.patch.dict(os.environ, {LIBRARY_VARIABLE: "always"}):
        result = run_product(made_by, shape, alpha, dtype, False, target)
    calls = list(torch_scaled_mm.CALLS)
    torch_scaled_mm.CALLS.clear()
    return {**result, "calls": len(calls), "taken for": [taken_for(call) for call in calls]}


def taken_for(call: tuple) -> Any:
    """Shape and dtype that torch's shape function gives for the arguments of a call, were they on a GPU, or its error."""
    with FakeTensorMode(allow_non_fake_inputs=False):

        def fake(x: Any) -> Any:
            if isinstance(x, torch.Tensor):
                return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda")
            return [fake(one) for one in x] if isinstance(x, (list, tuple)) else x

        try:
            made = torch.ops.aten._scaled_mm_v2.default(*map(fake, call))
        except (RuntimeError, ValueError) as error:
            return str(error)
    return tuple(made.shape), made.dtype


def run_grouped(
    gemm: str, ends: tuple[int, ...], sizes: tuple[int, int], target: str, unrotated: bool, made_by: str = "mxfp4"
) -> dict[str, Any]:
    """A grouped product beside the reference's loop, of 200 rows, rounded up; with the epilogue of the backward pass."""
    (n, k), tokens, matrices = sizes, 224, len(ends)
    shapes = {
        "fprop": ((tokens, k), (matrices * n, k)),
        "dgrad": ((tokens, n), (k, matrices * n)),
        "wgrad": ((n, tokens), (k, tokens)),
    }
    a, b = (globals()[made_by](*shape, seed) for seed, shape in enumerate(shapes[gemm]))
    rows, columns = grouped.product_shape(a.codes.shape[0], b.codes.shape[0], matrices, gemm)
    mask = torch.randint(0, 256, (rows, columns // 8), dtype=torch.uint8)
    left, right = a.format, b.format

    def call(a0, a1, a2, b0, b1, b2, ends, mask):
        how = (ends, matrices, gemm, 16 / 9, torch.float32, *((mask, 32, columns - 5) if unrotated else ()))
        return ops.scaled_grouped_mm(a0, a1, a2, left, b0, b1, b2, right, *how)

    compiled = compile_interpreted(call, target)
    groups = torch.tensor(ends, dtype=torch.int32)
    with torch.no_grad():
        made = compiled(*a[:3], *b[:3], groups, mask)
    expected = grouped.scaled_grouped_mm(a, b, groups, matrices, gemm, 16 / 9, torch.float32, reference.scaled_mm)
    if unrotated:
        expected = reference.unrotate(expected, mask, 32, columns - 5)
    return {"made": made, "expected": expected, "templates": templates(compiled), "kernels": kernels(compiled)}


def run_product_with_epilogue(shape: tuple[int, int, int], target: str) -> dict[str, Any]:
    """`gelu(a b^T + bias) + residual`: in how many kernels, and its distance from the reference."""
    m, n, k = shape
    a, b = mxfp4(m, k, 1), mxfp4(n, k, 2)
    bias, residual = torch.randn(n).bfloat16(), torch.randn(m, n).bfloat16()

    def call(a0, a1, a2, b0, b1, b2, bias, residual):
        product = ops.scaled_mm(a0, a1, a2, "mxfp4", b0, b1, b2, "mxfp4", 1.0, torch.bfloat16)
        return torch.nn.functional.gelu(product + bias) + residual

    compiled = compile_interpreted(call, target)
    with torch.no_grad():
        made = compiled(*a[:3], *b[:3], bias, residual)
    product = reference.scaled_mm(a, b, 1.0, torch.float32)
    expected = torch.nn.functional.gelu(product + bias.float()) + residual.float()
    return {"made": made, "expected": expected, "templates": templates(compiled), "kernels": kernels(compiled)}


def run_unrotated_product(
    shape: tuple[int, int, int],
    columns: int,
    masked: bool,
    target: str,
    made_by: str = "mxfp4",
    rotation: int = 32,
    dtype: torch.dtype = torch.bfloat16,
) -> dict[str, Any]:
    """`unrotate(a b^T)` as in the backward pass, beside the reference without rounding in between."""
    m, n, k = shape
    a, b = globals()[made_by](m, k, 1), globals()[made_by](n, k, 2)
    mask = torch.randint(0, 256, (m, n // 8), dtype=torch.uint8) if masked else None
    given = [mask] if masked else []
    left, right = a.format, b.format

    def call(a0, a1, a2, b0, b1, b2, *mask):
        epilogue = (mask[0] if mask else None, rotation, columns)
        return ops.scaled_mm(a0, a1, a2, left, b0, b1, b2, right, 16 / 9, dtype, *epilogue)

    compiled = compile_interpreted(call, target)
    with torch.no_grad():
        made = compiled(*a[:3], *b[:3], *given)
    product = reference.scaled_mm(a, b, 16 / 9, torch.float32)
    expected = reference.unrotate(product, mask, rotation, columns)
    return {"made": made, "expected": expected, "templates": templates(compiled)}


def run_unrotate(
    shape: tuple[int, int], columns: int, dtype: torch.dtype, masked: bool, target: str, rotation: int = 32
) -> dict[str, Any]:
    rows, full = shape
    x = torch.randn(rows, full).to(dtype)
    x[0, 3] = float("inf")
    mask = torch.randint(0, 256, (rows, full // 8), dtype=torch.uint8) if masked else None
    if masked:
        mask[0, 0] &= ~(1 << 3)  # what is masked away must not spread
    compiled = compile_interpreted(
        lambda x, *mask: ops.unrotate(x, mask[0] if mask else None, rotation, columns), target
    )
    with torch.no_grad():
        made = compiled(x, *([mask] if masked else []))
    return {"made": made, "expected": reference.unrotate(x, mask, rotation, columns), "templates": templates(compiled)}


def run_fused_quantize(kind: str, target: str) -> dict[str, Any]:
    """What feeds a quantize, computed in its kernel: how many kernels, and how many codes differ from the reference."""
    x, gate = operand(64, 96, torch.float32).nan_to_num(0, 0, 0), torch.randn(64, 96)
    gamma = torch.randn(96)

    def produce(x, gate, gamma):
        if kind == "swiglu":
            return torch.nn.functional.silu(gate) * x
        return torch.nn.functional.rms_norm(x, (96,), gamma)

    compiled = compile_interpreted(
        lambda *inputs: ops.quantize(produce(*inputs), "mxfp4-quest", False, True, 0, None, None), target
    )
    with torch.no_grad():
        made = compiled(x, gate, gamma)
        expected = reference.quantize(produce(x, gate, gamma), quantizer("mxfp4-quest"), mask=True)
    same = (reference.unpack_nibbles(made[0]) == reference.unpack_nibbles(expected.codes)).float().mean().item()
    return {"same": same, "kernels": kernels(compiled), "templates": templates(compiled)}


def kernels(compiled: Any) -> int:
    """How many kernels the generated modules launch."""
    return sum(module.source.count(".run(") for module in compiled.modules)


def run_all(calls: dict[Any, tuple]) -> dict[Any, Any]:
    """Each named call `(function, *arguments)` of this file; one that fails gives its traceback."""
    made = {}
    for key, (name, *arguments) in calls.items():
        torch._dynamo.reset()
        try:
            made[key] = globals()[name](*arguments)
        except Exception:  # noqa: BLE001
            made[key] = traceback.format_exc()
    return made


def expected_templates(op, arguments):
    """The templates of a call, in order: a tensor scale needs a pass for the largest first."""
    if op == "transposed":
        return []
    if op == "quantize_pair":
        return [name for quant in arguments for name in expected_templates("quantize", (quant, False))]
    spec = quantizer(arguments[1] if op == "requantize" else arguments[0])
    plain = spec.elements == "e2m1" and not spec.two_level and not spec.square and spec.rotation in (0, 32)
    if plain and spec.scale_rounding == "down" and spec.rounding != "eden":
        before = quantizer(arguments[0])
        if op == "quantize":
            return ["quantize_transposed" if arguments[1] else "quantize"]
        if before.elements == "e2m1" and not before.two_level:
            return ["requantize"]
    return [f"{op}_largest", f"{op}_any"] if spec.two_level else [f"{op}_any"]
