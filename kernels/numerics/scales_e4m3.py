"""Groups with an E4M3 scale relative to a float32 scale of the tensor (NVFP4), in plain PyTorch; see `reference.py` for
the rules.

With `v = 6 / headroom`, `L` the largest group scale and `a` the largest magnitude of the tensor, of finite groups:

    s = a / L / v                       tensor scale; 1 where a is 0
    b = E4M3(absmax_g / v / s)          group scale; 1 where that is 0
    y = x / (b s)                       to E2M1; the value is code * (b s)

The order of the divisions is that of the published kernels (arXiv 2601.22813), whose outputs this gives bit for bit.
"""

from __future__ import annotations

import torch

from ..quantizer import E2M1_MAX, E4M3_NAN, Quantizer
from . import philox
from .codes import decode_e2m1, encode_e2m1, encode_e4m3, exponent_field, pairwise_sum, power_of_two, stochastic_e4m3
from .scales_e8m0 import eden_factor, element_noise
from .square_blocks import over_square, sum_over_square
from .supports import REFERENCE


def quantize_groups(
    rotated: torch.Tensor, finite: torch.Tensor, quantizer: Quantizer, seed: torch.Tensor | None, stream: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes int64[rows, groups, 16], scales float8_e4m3fn[rows, groups, 1], the tensor scale float32[1], and which groups
    are valid.

    rotated: float32[rows, groups, 16]; finite: [rows, groups, 1].
    """
    rows, groups, _ = rotated.shape
    largest = rotated.abs().amax(-1, keepdim=True)
    valid = ~over_square(~(finite & largest.isfinite()), quantizer)
    largest = over_square(torch.where(valid, largest, 0.0), quantizer)
    rotated = torch.where(valid, rotated, 0.0)
    top = _float32(E2M1_MAX / quantizer.headroom, rotated)
    tensor_scale = _tensor_scale(largest, top, quantizer)
    wanted = largest / top / tensor_scale
    match quantizer.scale:
        case "absmax":
            scale = _group_scale(wanted)
        case "four-over-six":
            scale = _four_over_six(rotated, wanted, tensor_scale, quantizer)
        case other:
            raise REFERENCE.refusal("scale", other)
    scaled = rotated / (scale.float() * tensor_scale)
    codes = torch.where(valid, encode_e2m1(scaled, element_noise(scaled, quantizer, seed, stream)), 0)
    if quantizer.rounding == "eden":
        corrected = scale.float() * eden_factor(scaled, codes, quantizer)
        scale = stochastic_e4m3(corrected, philox.noise(seed, stream, rows, groups)[..., None])
    scale = torch.where(valid, scale.view(torch.uint8), E4M3_NAN).to(torch.uint8).view(torch.float8_e4m3fn)
    return codes, scale, tensor_scale.reshape(1), valid


def _tensor_scale(largest: torch.Tensor, top: torch.Tensor, quantizer: Quantizer) -> torch.Tensor:
    of_all = largest.amax() if largest.numel() else largest.new_zeros(())
    scale = of_all / _float32(quantizer.largest_scale, largest) / top
    return torch.where(of_all == 0, 1.0, scale)


def _group_scale(wanted: torch.Tensor) -> torch.Tensor:
    """E4M3 to nearest, 1 for 0."""
    scale = encode_e4m3(wanted)
    return torch.where(scale.float() == 0, 1.0, scale.float()).to(torch.float8_e4m3fn)


def _four_over_six(
    rotated: torch.Tensor, wanted: torch.Tensor, tensor_scale: torch.Tensor, quantizer: Quantizer
) -> torch.Tensor:
    """Of the scales that bring the largest to 6 and to 4, the one with the smaller squared error; the first if equal.

    Errors are those of the tensor times the power of two that brings its scale to [1, 2), so none over- or underflows.
    """
    power = power_of_two(127 - exponent_field(tensor_scale))
    rotated, tensor_scale = rotated * power, tensor_scale * power
    scales, errors = [], []
    for factor in (1.0, 1.5):
        scale = _group_scale(wanted * factor)
        unit = scale.float() * tensor_scale
        error = (decode_e2m1(encode_e2m1(rotated / unit)) * unit - rotated).square()
        scales.append(scale.float())
        errors.append(sum_over_square(pairwise_sum(error), quantizer))
    return torch.where(errors[1] < errors[0], scales[1], scales[0]).to(torch.float8_e4m3fn)


def _float32(value: float, like: torch.Tensor) -> torch.Tensor:
    """A float32 scalar tensor: PyTorch would divide by a Python number as if it were a float64."""
    return torch.tensor(value, dtype=torch.float32, device=like.device)
