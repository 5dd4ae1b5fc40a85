"""bfloat16: what the FP4 forward pass computes with, dequantized and rotated back, for whatever loads the model itself."""

from __future__ import annotations

import torch

from .format import Format, Tensors, safetensors_writer
from .packing import Packed


def tensors(weight: Packed) -> Tensors:
    """The weight in its own layout. Without a rotation it is exact; with one, rotating back and bfloat16 round it."""
    return {weight.assignment.name: weight.restored().to(torch.bfloat16)}


def became(weight: Packed) -> str:
    """What is written, in words."""
    return f"bfloat16 of {weight.blocks.quantizer.name}"


FORMAT = Format(
    name="bf16",
    holds="what the forward pass computes with in bfloat16, for any loader",
    check=lambda job: None,
    writer=safetensors_writer(tensors, became),
    tensors=tensors,
)
