"""Tables with an entry that no backend knows, and kernels that are handed one."""

from __future__ import annotations

from types import MappingProxyType

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from quartet_compile.kernels import architectures, operand_formats
from quartet_compile.kernels import quantizer as formats
from quartet_compile.kernels.gpu import any_blocks, blocks

ENTRIES = {
    "elements": ("e3m2", {}),
    "scale_format": ("ue5m3", {}),
    "scale": ("median", {}),
    "scale_rounding": ("odd", {}),
    "rounding": ("dithered", {"shrink": 0.75}),
    "group": (64, {}),
    "group_rows": (64, {"group": 64, "rotation": 0}),
    "rotation": (256, {}),
    "noise_bits": (4, {"rounding": "stochastic", "shrink": 0.75}),
}
"""A made-up entry of each table of quantizer.py, and the other fields of a quantizer that has it."""


def quantizer_with(monkeypatch, field: str) -> formats.Quantizer:
    """A quantizer with the made-up entry of `field`, which its table has from now on."""
    name, others = ENTRIES[field]
    if field in formats.CHOICES:
        grown = {**formats.CHOICES[field], name: "made up"}
        monkeypatch.setattr(formats, "CHOICES", MappingProxyType({**formats.CHOICES, field: grown}))
    else:
        sizes = {key: (*values, 64) if key in others else values for key, values in formats.SIZES.items()}
        monkeypatch.setattr(formats, "SIZES", MappingProxyType({**sizes, field: (*formats.SIZES[field], name)}))
    return formats.Quantizer(**{field: name, **others})


def add_operand_format(monkeypatch, name: str) -> operand_formats.OperandFormat:
    """A made-up operand format, and its products with itself and MXFP4."""
    made = operand_formats.OperandFormat("e3m2", "e8m0", 32, torch.int8, 1, torch.int8)
    grown = MappingProxyType({**operand_formats.OPERAND_FORMATS, name: made})
    pairs = operand_formats.PRODUCT_FORMATS | {(name, name), (name, "mxfp4"), ("mxfp4", name)}
    monkeypatch.setattr(operand_formats, "OPERAND_FORMATS", grown)
    monkeypatch.setattr(operand_formats, "PRODUCT_FORMATS", pairs)
    return made


def add_architecture(monkeypatch, name: str, capability: tuple[int, int]) -> None:
    for table, key, value in (("ARCHITECTURES", name, "made up"), ("CAPABILITIES", capability, name)):
        grown = MappingProxyType({**getattr(architectures, table), key: value})
        monkeypatch.setattr(architectures, table, grown)


@triton.jit
def _e8m0(OUT, scale: tl.constexpr, scale_rounding: tl.constexpr, rounding: tl.constexpr):
    groups, zeros = tl.full((32, 32), 1.0, tl.float32), tl.zeros((32,), tl.int32)
    codes, _, _ = any_blocks.quantize_e8m0(
        groups, zeros, zeros, 0, 1, 0, 1, 1, False, scale, scale_rounding, 0.75, rounding, 8, False, False
    )
    tl.store(OUT + tl.arange(0, 16)[:, None] * 32 + tl.arange(0, 32)[None, :], codes)


@triton.jit
def _e4m3(OUT, scale: tl.constexpr, rounding: tl.constexpr):
    groups, zeros = tl.full((16, 32), 1.0, tl.float32), tl.zeros((32,), tl.int32)
    codes, _, _ = any_blocks.quantize_e4m3(groups, 1.0, zeros, zeros, 0, 0, 1, 1, 6.0, scale, rounding, 8, False, False)
    tl.store(OUT + tl.arange(0, 8)[:, None] * 32 + tl.arange(0, 32)[None, :], codes)


@triton.jit
def _decoded(OUT, format: tl.constexpr):
    x = blocks.decoded(tl.full((32, 16), 0, tl.uint8), tl.full((32, 1), 127, tl.uint8), format)
    tl.store(OUT + tl.arange(0, 32)[:, None] * 32 + tl.arange(0, 32)[None, :], x)


KERNELS = {"e8m0": (_e8m0, "*u8"), "e4m3": (_e4m3, "*u8"), "decoded": (_decoded, "*fp32")}


def compile_for_gpu(name: str, **constants: str) -> None:
    """Compile one of `KERNELS`, as far as Triton's own IR goes; needs no GPU."""
    function, out = KERNELS[name]
    signature = {"OUT": out, **dict.fromkeys(constants, "constexpr")}
    triton.compile(ASTSource(function, signature, constexprs=constants), target=GPUTarget("cuda", 90, 32))
