"""bfloat16: what the FP4 forward pass computes with, dequantized and rotated back, for whatever loads the model itself."""

from __future__ import annotations

import pathlib

import torch

from .format import Format, Job, SafetensorsWriter, Tensors
from .packing import Packed
from .shards import Shards


def tensors(weight: Packed) -> Tensors:
    """The weight in its own layout. Without a rotation it is exact; with one, rotating back and bfloat16 round it."""
    return {weight.assignment.name: weight.restored().to(torch.bfloat16)}


def _writer(job: Job, folder: pathlib.Path) -> SafetensorsWriter:
    def became(weight: Packed) -> str:
        return f"bfloat16 of {weight.blocks.quantizer.name}"

    return SafetensorsWriter(tensors, became, Shards(folder, job.source.names))


FORMAT = Format(
    name="bf16",
    holds="what the forward pass computes with in bfloat16, for any loader",
    operands=("mxfp4", "nvfp4", "mxfp8"),
    rotations=(0, 16, 32, 64, 128),
    check=lambda job: None,
    writer=_writer,
    tensors=tensors,
)
