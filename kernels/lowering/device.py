"""Which tensor cores a device has, and so which templates a product goes to."""

from __future__ import annotations

import torch

from ..architectures import product_format


def has_fp4(device: torch.device) -> bool:
    """Whether the device has FP4 tensor cores and conversions to E2M1: Blackwell, compute capability 10.0 and later."""
    return torch.cuda.get_device_capability(device)[0] >= 10


def multiplies_in_fp8(device: torch.device) -> bool:
    """Whether products go to FP8 tensor cores: Ada and Hopper (8.9 and 9.0) have these and none of FP4."""
    return torch.cuda.get_device_capability(device) in ((8, 9), (9, 0)) and product_format() == "fp8"


def through_tensor_memory(device: torch.device) -> bool:
    """Whether products read their operands by descriptors and their scales from tensor memory: compute capability 10."""
    return torch.cuda.get_device_capability(device)[0] == 10
