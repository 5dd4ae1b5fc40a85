"""The cases of the generated quantizers: every registered one, variants of their fields, pairs, and awkward data."""

from __future__ import annotations

import torch

from quartet_compile.kernels.quantizer import QUANTIZERS

bf16, f16, f32 = torch.bfloat16, torch.float16, torch.float32


REGISTERED = [name for name, spec in QUANTIZERS.items() if not spec.exact]


VARIANTS = [
    *(f"mxfp4-{kind},rotation={size}" for kind in ("quest", "rtn", "sr") for size in (16, 64, 128)),
    *(f"mxfp4-quest,scale_rounding={rounding}" for rounding in ("nearest", "up", "error")),
    *(f"mxfp4-rtn,scale_rounding={rounding}" for rounding in ("nearest", "up", "even")),
    "mxfp4-rtn,scale_rounding=error,shrink=1.0",
    "mxfp4-rtn,scale_rounding=error,shrink=1.0,rotation=128",
    "mxfp4-sr,scale_rounding=up,rotation=16",
    "mxfp4-eden,rotation=32,scale_rounding=nearest",
    "mxfp4-eden,shrink=1.0,scale_rounding=up",
    "mxfp4-rtn-2d,scale_rounding=down,shrink=0.75,rounding=stochastic",
    "nvfp4-rtn,rotation=16",
    "nvfp4-rtn-4over6,rotation=64,random_signs=True",
    "nvfp4-sr,rotation=128,random_signs=True",
    "nvfp4-sr,group_rows=16",
    "nvfp4-eden,rotation=16",
    "nvfp4-eden,rotation=32,headroom=1.0",
    "mxfp8,rotation=128,random_signs=True",
    "mxfp8,group_rows=32,scale_rounding=nearest",
    "mxfp8,scale_rounding=down",
    "mxfp8,scale_rounding=even",
]


PAIRS = [
    ("nvfp4-rtn", "nvfp4-eden"),
    ("nvfp4-rtn-4over6", "nvfp4-eden"),
    ("nvfp4-rtn-2d", "mxfp4-sr"),
    ("mxfp4-quest", "nvfp4-sr"),
    ("mxfp4-eden", "mxfp4-eden"),
    ("mxfp4-rtn,rotation=128", "mxfp8"),
    ("mxfp8", "nvfp4-rtn-2d-4over6"),
]


SPECIAL = {
    "every row is a block's": ("quantize", ("nvfp4-rtn-2d-4over6", False, False), (64, 128, f32, "mild"), "sm_90"),
    "one row": ("quantize", ("nvfp4-eden", False, False), (1, 1000, bf16, "mild"), "sm_100"),
    "one column": ("quantize", ("nvfp4-sr", True, False), (300, 1, f32, "mild"), "sm_120"),
    "more than one tile": ("quantize", ("mxfp4-eden", True, False), (130, 150, bf16, "mild"), "sm_100"),
    "half precision": ("quantize", ("nvfp4-rtn-4over6", False, False), (20, 48, f16, "mild"), "sm_90"),
    "zeros": ("quantize", ("nvfp4-eden", False, True), (20, 40, bf16, "zeros"), "sm_100"),
    "zeros, E8M0": ("quantize", ("mxfp4-eden", False, True), (20, 40, bf16, "zeros"), "sm_100"),
    "nothing finite": ("quantize", ("nvfp4-rtn", False, True), (20, 40, bf16, "nothing finite"), "sm_100"),
    "tiny": ("quantize", ("nvfp4-rtn-4over6", False, True), (20, 40, f32, "tiny"), "sm_100"),
    "tiny, E8M0": ("quantize", ("mxfp4-rtn-2d", False, True), (40, 70, f32, "tiny"), "sm_100"),
    "tiny, EDEN": ("quantize", ("mxfp4-eden", True, True), (40, 70, f32, "tiny"), "sm_100"),
    "huge, EDEN": ("quantize", ("mxfp4-eden", False, True), (20, 256, f32, "huge"), "sm_100"),
    "strides": ("quantize", ("nvfp4-rtn", False, False), (40, 96, bf16, "columns"), "sm_100"),
    "both directions": ("quantize_pair", ("nvfp4-eden", "nvfp4-eden"), (40, 96, bf16, "mild"), "sm_100"),
    "a direction each": ("quantize_pair", ("mxfp4-sr", "nvfp4-sr"), (33, 100, f32, "mild"), "sm_90"),
    "square": ("quantize_pair", ("nvfp4-rtn-2d", "nvfp4-rtn-2d"), (33, 70, f32, "mild"), "sm_90"),
}


TRANSPOSED = ["nvfp4-rtn-2d", "nvfp4-rtn-2d-4over6", "mxfp4-rtn-2d"]


def cases():
    for name in REGISTERED:
        yield name, ("quantize", (name, False, True), (65, 100, bf16, "mild"), "sm_100")
        yield f"{name} of columns", ("quantize", (name, True, False), (100, 65, f32, "mild"), "sm_90")
    for before, after in PAIRS:
        yield f"{before} to {after}", ("requantize", (before, after), (65, 100, f32, "mild"), "sm_100")
    for name in TRANSPOSED:
        yield f"{name} transposed", ("transposed", (name,), (65, 100, f32, "mild"), "sm_100")
    yield from SPECIAL.items()


def slow_cases():
    for name in VARIANTS:
        yield name, ("quantize", (name, False, True), (65, 100, bf16, "mild"), "sm_100")
        yield f"{name} of columns", ("quantize", (name, True, True), (100, 65, f32, "mild"), "sm_90")
    for name in (*REGISTERED, *VARIANTS):
        yield f"{name} of extremes", ("quantize", (name, False, True), (65, 100, f32), "sm_100")
        yield f"{name} of extremes in columns", ("quantize", (name, True, True), (65, 100, bf16), "sm_120")
    for before, after in PAIRS:
        yield f"{before} to {after}, extremes", ("requantize", (before, after), (40, 96, bf16), "sm_90")


CASES = dict(cases())


SLOW = dict(slow_cases())
