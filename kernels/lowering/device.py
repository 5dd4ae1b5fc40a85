"""Which tensor cores a device has, and so which templates a product goes to."""

from __future__ import annotations

import torch

from ..architectures import architecture, product_format
from ..gpu.supports import GPU, GROUPED_PRODUCTS


def architecture_of(device: torch.device) -> str:
    """An entry of `ARCHITECTURES` that the templates know. Raises `QuantizerError`."""
    name = architecture(tuple(torch.cuda.get_device_capability(device)))
    GPU.require_entry("architecture", name)
    return name


def has_fp4(device: torch.device) -> bool:
    """Whether the device has FP4 tensor cores and conversions to E2M1."""
    return architecture_of(device) in ("blackwell", "blackwell-rtx")


def multiplies_in_fp8(device: torch.device) -> bool:
    """Whether products go to FP8 tensor cores: where there are some, and none of FP4."""
    if architecture_of(device) not in ("ada", "hopper"):
        return False
    match product_format():
        case "fp8":
            return True
        case "bf16":
            return False
        case other:
            raise GPU.refusal("products", other)


def unit_of(device: torch.device, left: str, right: str, grouped: bool = False) -> str:
    """What multiplies a pair of operands, by their formats: `"native"`, tensor cores of the format; `"fp8"`; `"bf16"`, of
    decoded operands; or `"reference"`, where grouped products have no template."""
    if grouped and (left, right) not in GROUPED_PRODUCTS:
        return "reference"
    if has_fp4(device):
        return "native" if left == right else "bf16"
    return "fp8" if left == right == "mxfp4" and not grouped and multiplies_in_fp8(device) else "bf16"


def adds_in_pairs(device: torch.device) -> bool:
    """Whether one instruction adds two float32, or multiplies them."""
    return architecture_of(device) == "blackwell"


def through_tensor_memory(device: torch.device) -> bool:
    """Whether products read their operands by descriptors and their scales from tensor memory."""
    return architecture_of(device) == "blackwell"
