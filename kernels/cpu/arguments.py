"""What the C++ quantizers are asked for: `Request` of operand.h by MXFP4 with rotations of 0 or 32, `AnyRequest` of
target.h by the other quantizers (`is_fast` draws the line), and the blocks that they fill."""

from __future__ import annotations

import ctypes

import torch

from ..numerics.reference import Blocks
from ..quantizer import E2M1_MAX, Quantizer, padded
from .arrays import Array

_QUEST, _STOCHASTIC, _ROTATE, _NEAREST_SCALE, _UP_SCALE = 1, 2, 4, 8, 16
TENSOR_SCALE = Array("a tensor scale", torch.float32, (1,))
_NO_TENSOR_SCALE = TENSOR_SCALE._replace(shape=(0,))
_SEED = Array("a seed", torch.int64, ())
_SIGN_SEED = Array("a seed of signs", torch.int64, ())
_POINTERS = ("seed", "signs", "sign_seed", "codes", "scales")


def _fields(kind: type, *names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names]


class _Request(ctypes.Structure):
    _fields_ = [
        *_fields(ctypes.c_int64, "flags", "stream"),
        *_fields(ctypes.c_double, "shrink"),
        *_fields(ctypes.c_void_p, *_POINTERS, "mask"),
    ]


class _AnyRequest(ctypes.Structure):
    _fields_ = [
        *_fields(ctypes.c_int64, "elements", "scale", "scale_rounding", "rounding"),
        *_fields(ctypes.c_int64, "group", "group_rows", "rotation", "stream"),
        *_fields(ctypes.c_double, "shrink", "top", "largest_scale"),
        *_fields(ctypes.c_void_p, *_POINTERS, "tensor_scale", "mask"),
    ]


_ENUMS = {
    "elements": ("e2m1", "e4m3"),
    "scale": ("absmax", "quest", "four-over-six"),
    "scale_rounding": ("down", "nearest", "up", "error"),
    "rounding": ("nearest", "stochastic", "eden"),
}
"""The enumerations of target.h, in their order."""


def is_fast(quantizer: Quantizer) -> bool:
    """Whether the kernels for MXFP4 know this quantizer. Their stochastic one takes it that no magnitude is 6, so that
    masks are ones."""
    return (
        (quantizer.elements, quantizer.scale_format, quantizer.group_rows) == ("e2m1", "e8m0", 1)
        and quantizer.rotation in (0, 32)
        and quantizer.scale_rounding != "error"
        and quantizer.rounding != "eden"
        and not (quantizer.stochastic and quantizer.scale_rounding == "up")
    )


def request(
    quantizer: Quantizer,
    shape: tuple[int, int],
    mask: bool,
    stream: int,
    seed: torch.Tensor | None,
    signs: torch.Tensor | None,
    sign_seed: torch.Tensor | None,
) -> tuple[Blocks, ctypes.Structure]:
    """Blocks of `[rows, columns]`, and what fills them with the codes of `quantizer`. It holds addresses: keep the blocks
    and the tensors."""
    random = quantizer.random_signs
    made = [array.empty() for array in layout(quantizer, *shape, mask)]
    blocks = Blocks(*(part for part, _ in made))
    codes, scales, tensor_scale, bits = (address for _, address in made)
    pointers = {
        "seed": _SEED.address(seed) if quantizer.noisy else None,
        "signs": _signs(quantizer).address(signs) if random and signs is not None else None,
        "sign_seed": _SIGN_SEED.address(sign_seed) if random and signs is None else None,
        "codes": codes,
        "scales": scales,
        "mask": bits if mask else None,
    }
    if is_fast(quantizer):
        return blocks, _Request(flags=_flags(quantizer), stream=stream, shrink=quantizer.shrink, **pointers)
    return blocks, _AnyRequest(
        **{field: names.index(getattr(quantizer, field)) for field, names in _ENUMS.items()},
        group=quantizer.group,
        group_rows=quantizer.group_rows,
        rotation=quantizer.rotation,
        stream=stream,
        shrink=quantizer.shrink,
        top=E2M1_MAX / quantizer.headroom,
        largest_scale=quantizer.largest_scale,
        tensor_scale=tensor_scale if quantizer.two_level else None,
        **pointers,
    )


def _flags(quantizer: Quantizer) -> int:
    flags = _ROTATE if quantizer.rotation else 0
    if quantizer.scale == "quest":
        flags |= _QUEST
    if quantizer.rounding == "stochastic":
        flags |= _STOCHASTIC
    return flags | {"down": 0, "nearest": _NEAREST_SCALE, "up": _UP_SCALE}[quantizer.scale_rounding]


def layout(quantizer: Quantizer, rows: int, columns: int, mask: bool) -> tuple[Array, Array, Array, Array]:
    """The parts of blocks of `[rows, columns]`, laid out as kernels/numerics/reference.py says."""
    full = padded(columns, quantizer.block)
    if quantizer.elements == "e4m3":
        codes = Array("codes", torch.float8_e4m3fn, (rows, full))
    else:
        codes = Array("codes", torch.uint8, (rows, full // 2))
    scale_type = torch.float8_e4m3fn if quantizer.two_level else torch.uint8
    return (
        codes,
        Array("scales", scale_type, (rows, full // quantizer.group)),
        TENSOR_SCALE if quantizer.two_level else _NO_TENSOR_SCALE,
        Array("a mask", torch.uint8, (rows, full // 8 if mask else 0)),
    )


def _signs(quantizer: Quantizer) -> Array:
    return Array("signs", torch.float32, (quantizer.rotation,))
