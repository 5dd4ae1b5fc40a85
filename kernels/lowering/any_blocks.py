"""Blocks of every quantizer, by one template; where there is a tensor scale, after a first pass over the operand."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from ..operand_formats import OPERAND_FORMATS
from ..quantizer import E2M1_MAX, Quantizer
from . import templates
from .device import has_fp4
from .flat import Flat
from .inductor import TritonTemplate, V, ir, lowerings, ops, realize_inputs
from .operands import ELEMENTS_E4M3, SCALES_E4M3, in_float8, nothing, round_up
from .scales import swizzled_with
from .templates import select

aten = torch.ops.aten


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
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
            "SOURCE_E4M3": ELEMENTS_E4M3[spec.elements],
            "SOURCE_TWO_LEVEL": SCALES_E4M3[spec.scale_format],
            "SOURCE_GROUP": spec.group,
            "SOURCE_SHRINK": spec.shrink,
        }


def _tiles(spec: Quantizer, most: int = 4096) -> list[dict[str, Any]]:
    """At most 32 elements a thread: with a whole block of 128 in each, EDEN's sums take all 255 registers and spill. 8 of
    four-over-six, whose two candidates are in registers. most: elements a tile."""
    elements = 1024 if spec.scale == "four-over-six" else most
    return [dict(BLOCKS=min(128, elements // spec.block), num_warps=4, num_stages=1)]


def quantize_blocks(
    source: Source, length: Any, width: Any, spec: Quantizer, mask: bool, stream: int, seeds: list[Any]
) -> tuple[Any, Any, Any, Any]:
    """Codes, scales, tensor scale and mask of an operand [length, width], by the templates that know every quantizer."""
    per_row = V.graph.sizevars.simplify(ir.FloorDiv(width + spec.block - 1, spec.block))
    groups = per_row * (spec.block // spec.group)
    constants = dict(source.fields(), **_all_fields(spec), STREAM=stream, SEEDED=bool(seeds))
    constants["TALL"] = source.transposed or spec.square
    inputs = [*source.inputs, *seeds]
    decoded = source.quantizer is not None
    tensor_scale = nothing(None, torch.float32, source.device)
    if spec.two_level:
        template = templates.largest_of_codes if decoded else templates.largest
        tensor_scale = _tensor_scale(template, inputs, source.device, length, per_row, spec, constants)
        inputs.append(realize_inputs(tensor_scale))
    bytes_a_group = spec.group // OPERAND_FORMATS[spec.format].packed
    names = ("LENGTH", "GROUPS_A_ROW")
    flat = Flat(LENGTH=length, GROUPS_A_ROW=groups)
    flat.add("CODES", *names, bytes_a_group)
    flat.add("SCALES", *names)
    if mask:
        flat.add("MASK", *names, spec.group // 8)
    swizzled = flat.add_swizzled("SWIZZLED", *names, source.device)
    buffer = select(
        templates.requantize_any if decoded else templates.quantize_any,
        inputs,
        flat.layout(source.device),
        [length, per_row],
        _tiles(spec),
        **constants,
        LARGEST=False,
        BYTES=bytes_a_group,
        MASKED=mask,
        SWIZZLED=swizzled,
        NATIVE=has_fp4(source.device),
        **flat.starts(),
    )
    made = flat.views(buffer)
    codes = in_float8(made["CODES"], ELEMENTS_E4M3[spec.elements])
    scales = in_float8(made["SCALES"], SCALES_E4M3[spec.scale_format])
    if swizzled:
        swizzled_with(scales, made["SWIZZLED"])
    return codes, scales, tensor_scale, made["MASK"] if mask else nothing(length, torch.uint8, source.device)


def _all_fields(spec: Quantizer) -> dict[str, Any]:
    return {
        "BLOCK": spec.block,
        "GROUP": spec.group,
        "GROUP_ROWS": spec.group_rows,
        "ROTATION": spec.rotation,
        "RANDOM_SIGNS": spec.random_signs,
        "E4M3": ELEMENTS_E4M3[spec.elements],
        "TWO_LEVEL": SCALES_E4M3[spec.scale_format],
        "SCALE": repr(spec.scale),
        "SCALE_ROUNDING": repr(spec.scale_rounding),
        "SHRINK": spec.shrink,
        "TOP": E2M1_MAX / spec.headroom,
        "ROUNDING": repr(spec.rounding),
        "NOISE_BITS": spec.noise_bits,
    }


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
    tiles = _tiles(spec, 2048 if constants["DECODED"] else 4096)  # places of codes and of scales take registers too
    blocks = tiles[0]["BLOCKS"]
    programs = round_up(length, blocks) * per_row if constants["TALL"] else round_up(length * per_row, blocks)
    programs = V.graph.sizevars.simplify(ir.FloorDiv(programs, blocks))
    layout = ir.FixedLayout(device, torch.float32, [programs])
    partial = select(template, inputs, layout, [length, per_row], tiles, **constants, LARGEST=True)
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
    return torch.tensor(value, dtype=torch.float32, device="cpu").item()
