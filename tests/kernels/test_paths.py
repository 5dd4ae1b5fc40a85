"""What products run on, in words."""

from __future__ import annotations

import pytest
import torch

from quartet_compile.kernels.architectures import LIBRARY_VARIABLE, VARIABLE
from quartet_compile.kernels.paths import path_of

PLAIN, GROUPED = ("mxfp4", "mxfp4", False), ("mxfp4", "mxfp4", True)
CASES = {
    "plain products on Hopper": ((9, 0), {PLAIN}, "emulated on FP8 tensor cores, no FP4 hardware"),
    "grouped ones there are decoded": ((9, 0), {GROUPED}, "emulated in bf16, no FP4 hardware"),
    "both, on Ada": (
        (8, 9),
        {PLAIN, GROUPED},
        "emulated on FP8 tensor cores, no FP4 hardware and emulated in bf16, no FP4 hardware",
    ),
    "grouped ones on Blackwell": ((10, 0), {GROUPED}, "native MXFP4"),
    "grouped ones of two formats": ((10, 0), {("mxfp4", "mxfp8", True)}, "emulated in float32 by PyTorch"),
}


@pytest.mark.parametrize("capability, products, words", CASES.values(), ids=CASES)
def test_a_gpu_says_what_multiplies(monkeypatch, capability, products, words):
    pytest.importorskip("triton")
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "GPU")
    assert path_of(torch.device("cuda"), products) == f"GPU: {words}"


LIBRARY = {
    "native": ((10, 0), {PLAIN}, "native MXFP4, by torch's library where it computes the same"),
    "no MXFP4 in the library": ((12, 0), {PLAIN}, "native MXFP4"),
    "grouped products are ours": ((10, 0), {GROUPED}, "native MXFP4"),
    "in FP8": (
        (9, 0),
        {PLAIN},
        "emulated on FP8 tensor cores, no FP4 hardware, by torch's library where it computes the same",
    ),
    "decoded": ((9, 0), {("nvfp4", "nvfp4", False)}, "emulated in bf16, no FP4 hardware"),
}


@pytest.mark.parametrize("capability, products, words", LIBRARY.values(), ids=LIBRARY)
def test_a_gpu_says_that_the_library_is_wanted(monkeypatch, capability, products, words):
    monkeypatch.setenv(LIBRARY_VARIABLE, "always")
    test_a_gpu_says_what_multiplies(monkeypatch, capability, products, words)
