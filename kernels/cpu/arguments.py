"""What the C++ quantizers are asked for: `Request` of operand.h by MXFP4 with rotations of 0 or 32, `AnyRequest` of
destination.h by the other quantizers (`is_fast` draws the line), and the blocks that they fill."""

from __future__ import annotations

import ctypes
import functools

import torch

from ...errors import QuantizerError
from ..numerics.reference import Blocks
from ..operand_formats import OPERAND_FORMATS
from ..quantizer import E2M1_MAX, Quantizer, padded
from .arrays import Array
from .entries import FIELDS, numbers
from .supports import CPU

_FAST = {
    "scale": ("absmax", "quest"),
    "scale_rounding": ("down", "nearest", "up"),
    "rounding": ("nearest", "stochastic"),
}
"""The choices that the kernels for MXFP4 know."""

TENSOR_SCALE = Array("a tensor scale", torch.float32, (1,))
_NO_TENSOR_SCALE = TENSOR_SCALE._replace(shape=(0,))
_SEED = Array("a seed", torch.int64, ())
_SIGN_SEED = Array("a seed of signs", torch.int64, ())
_POINTERS = ("seed", "signs", "sign_seed", "codes", "scales")


def _fields(kind: type, *names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names]


class _Request(ctypes.Structure):
    _fields_ = [
        *_fields(ctypes.c_int64, "known", *_FAST, "rotation", "noise_bits", "stream"),
        *_fields(ctypes.c_double, "shrink"),
        *_fields(ctypes.c_void_p, *_POINTERS, "mask"),
    ]


class _AnyRequest(ctypes.Structure):
    _fields_ = [
        *_fields(ctypes.c_int64, "known", *FIELDS),
        *_fields(ctypes.c_int64, "group", "group_rows", "rotation", "noise_bits", "stream"),
        *_fields(ctypes.c_double, "shrink", "top", "largest_scale"),
        *_fields(ctypes.c_void_p, *_POINTERS, "tensor_scale", "mask"),
    ]


@functools.cache
def is_fast(quantizer: Quantizer) -> bool:
    """Whether the kernels for MXFP4 know this quantizer: absmax is rounded down, so that one multiply brings sums to the
    grid with a factor that is not subnormal. The stochastic one takes it that no magnitude is 6, so that masks are ones."""
    return (
        (quantizer.elements, quantizer.scale_format, quantizer.group_rows) == ("e2m1", "e8m0", 1)
        and quantizer.rotation in (0, 32)
        and all(getattr(quantizer, field) in known for field, known in _FAST.items())
        and (quantizer.scale == "quest" or quantizer.scale_rounding == "down")
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
    and the tensors. Raises `QuantizerError` if the kernels don't know the quantizer."""
    CPU.require(quantizer)
    random = quantizer.random_signs
    made = [array.empty() for array in layout(quantizer, *shape, mask)]
    parts = [part for part, _ in made]
    blocks = Blocks(parts[0], parts[1], parts[2], parts[3], quantizer.format)
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
        entries = {field: numbers(field)[getattr(quantizer, field)] for field in _FAST}
        sizes = {size: getattr(quantizer, size) for size in ("rotation", "noise_bits")}
        return blocks, _Request(**entries, **sizes, stream=stream, shrink=quantizer.shrink, **pointers)
    return blocks, _AnyRequest(
        **{field: numbers(field)[getattr(quantizer, field)] for field in FIELDS},
        group=quantizer.group,
        group_rows=quantizer.group_rows,
        rotation=quantizer.rotation,
        noise_bits=quantizer.noise_bits,
        stream=stream,
        shrink=quantizer.shrink,
        top=E2M1_MAX / quantizer.headroom,
        largest_scale=quantizer.largest_scale,
        tensor_scale=tensor_scale if quantizer.two_level else None,
        **pointers,
    )


def require_known(*requests: ctypes.Structure | None) -> None:
    """Raise `QuantizerError` if C++ did nothing, since it doesn't know what a request says."""
    for of in requests:
        if of is not None and not of.known:
            said = ", ".join(f"{name}={getattr(of, name)}" for name, kind, *_ in of._fields_ if kind is ctypes.c_int64)
            raise QuantizerError(
                f"A CPU kernel got a request that it doesn't know: {said}; expected the numbers of kernels/cpu/entries.h. "
                "Let entries.py read them there."
            )


def layout(quantizer: Quantizer, rows: int, columns: int, mask: bool) -> tuple[Array, Array, Array, Array]:
    """The parts of blocks of `[rows, columns]`, laid out as kernels/numerics/reference.py says."""
    full, facts = padded(columns, quantizer.block), OPERAND_FORMATS[quantizer.format]
    return (
        Array("codes", facts.codes, (rows, full // facts.packed)),
        Array("scales", facts.scales, (rows, full // quantizer.group)),
        TENSOR_SCALE if quantizer.two_level else _NO_TENSOR_SCALE,
        Array("a mask", torch.uint8, (rows, full // 8 if mask else 0)),
    )


def _signs(quantizer: Quantizer) -> Array:
    return Array("signs", torch.float32, (quantizer.rotation,))
