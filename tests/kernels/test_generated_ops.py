"""The kernels that Inductor generates for each op, run in Triton's interpreter: bit for bit the reference on codes, scales
and masks, and within accumulation error on products. sm_100 has FP4 tensor cores, sm_120 its own template of them, sm_90
and sm_89 have FP8, sm_80 decodes to bf16."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
from interpreted_module import in_interpreter

bf16, f16, f32 = torch.bfloat16, torch.float16, torch.float32

CODES = {
    "QuEST with mask": ("quantize", ("mxfp4-quest", False, True), (48, 96, bf16), "sm_100"),
    "QuEST without mask": ("quantize", ("mxfp4-quest", False, False), (48, 96, bf16), "sm_90"),
    "nearest": ("quantize", ("mxfp4-rtn", False, False), (40, 64, f32), "sm_100"),
    "stochastic": ("quantize", ("mxfp4-sr", False, False), (40, 64, bf16), "sm_100"),
    "no rotation": ("quantize", ("rotation=0", False, True), (40, 64, bf16), "sm_100"),
    "half precision": ("quantize", ("mxfp4-quest", False, True), (40, 64, f16), "sm_90"),
    "odd columns": ("quantize", ("mxfp4-quest", False, True), (33, 100, bf16), "sm_100"),
    "fewer columns than a group": ("quantize", ("mxfp4-sr", False, True), (7, 5, f32), "sm_100"),
    "one row": ("quantize", ("mxfp4-rtn", False, True), (1, 1000, bf16), "sm_100"),
    "transposed": ("quantize", ("mxfp4-sr", True, False), (100, 40, bf16), "sm_100"),
    "transposed with mask": ("quantize", ("mxfp4-quest", True, True), (65, 33, f32), "sm_90"),
    "columns first": ("quantize", ("mxfp4-quest", False, True), (48, 96, bf16, "columns"), "sm_100"),
    "stride 0": ("quantize_pair", ("mxfp4-sr", "mxfp4-sr"), (40, 96, bf16, "expanded"), "sm_100"),
    "both directions": ("quantize_pair", ("mxfp4-sr", "mxfp4-sr"), (160, 192, bf16), "sm_100"),
    "both directions, odd": ("quantize_pair", ("mxfp4-rtn", "mxfp4-sr"), (33, 100, f32), "sm_90"),
    "both directions, small": ("quantize_pair", ("mxfp4-sr", "mxfp4-sr"), (3, 5, bf16), "sm_100"),
    "re-quantized": ("requantize", ("mxfp4-quest", "mxfp4-sr"), (64, 128, bf16), "sm_100"),
    "re-quantized, odd": ("requantize", ("mxfp4-quest", "mxfp4-rtn"), (33, 100, bf16), "sm_90"),
    "re-quantized zeros": ("requantize", ("rotation=0", "mxfp4-sr"), (96, 64, bf16, "sparse"), "sm_100"),
    "re-quantized zeros, by butterflies": (
        "requantize",
        ("rotation=0", "mxfp4-rtn"),
        (160, 64, bf16, "sparse"),
        "sm_90",
    ),
    "re-quantized from shrunk": ("requantize", ("mxfp4-sr", "mxfp4-rtn"), (100, 96, f32), "sm_100"),
}
PRODUCTS = {
    "square": ("mxfp4", (128, 128, 256), 1.0, f32, False, "sm_100"),
    "odd": ("mxfp4", (70, 33, 160), 16 / 9, f32, True, "sm_100"),
    "several tiles": ("mxfp4", (130, 140, 288), 16 / 9, bf16, False, "sm_100"),
    "nvfp4": ("nvfp4", (40, 72, 288), 1.0, f32, False, "sm_100"),
    "through registers": ("mxfp4", (130, 33, 160), 16 / 9, f32, True, "sm_120"),
    "nvfp4 through registers": ("nvfp4", (40, 72, 192), 1.0, bf16, False, "sm_120"),
    "in FP8": ("mxfp4", (130, 140, 160), 16 / 9, f32, True, "sm_90"),
    "in FP8, bf16 output": ("mxfp4", (70, 33, 288), 16 / 9, bf16, False, "sm_89"),
    "beyond FP8": ("mxfp4_wide", (130, 140, 160), 1.0, f32, False, "sm_90"),
    "decoded": ("mxfp4", (70, 33, 160), 16 / 9, bf16, True, "sm_80"),
    "nvfp4 decoded": ("nvfp4", (40, 72, 192), 1.0, bf16, False, "sm_80"),
    "nvfp4 decoded on Hopper": ("nvfp4", (40, 72, 192), 1.0, f32, False, "sm_90"),
    "mxfp8": ("mxfp8", (70, 33, 160), 1.0, f32, True, "sm_90"),
    "mxfp8 on Blackwell": ("mxfp8", (130, 140, 288), 1.0, bf16, False, "sm_100"),
    "mxfp8 through registers": ("mxfp8", (70, 33, 160), 16 / 9, f32, True, "sm_120"),
    "mixed": ("mixed", (40, 72, 192), 1.0, f32, False, "sm_100"),
}
TEMPLATES = {"sm_100": ["scaled_mm_tma"], "sm_120": ["scaled_mm"], "sm_80": []}
TEMPLATES |= {target: ["decode_fp8", "decode_fp8", "scaled_mm_fp8"] for target in ("sm_89", "sm_90")}
DECODED = ("nvfp4 decoded on Hopper", "mxfp8", "mixed")
UNROTATED = {
    "masked": ((70, 96, 160), 96, True, "sm_100"),
    "cropped": ((70, 96, 160), 67, True, "sm_100"),
    "no mask": ((70, 160, 64), 160, False, "sm_100"),
    "through registers": ((70, 96, 160), 67, True, "sm_120"),
    "nvfp4": ((70, 96, 288), 67, True, "sm_100", "nvfp4"),
    "mxfp8 through registers": ((70, 96, 160), 67, True, "sm_120", "mxfp8"),
    "a rotation that the template lacks": ((70, 96, 160), 67, True, "sm_120", "mxfp4", 16),
    "in FP8": ((70, 96, 160), 67, True, "sm_90"),
    "in FP8, several tiles": ((130, 160, 288), 160, False, "sm_90"),
    "in FP8, beyond FP8": ((70, 96, 160), 96, True, "sm_89", "mxfp4_wide"),
    "in FP8, half precision": ((70, 96, 160), 96, True, "sm_90", "mxfp4", 32, f16),
    "in FP8, float32": ((70, 96, 160), 67, True, "sm_90", "mxfp4", 32, f32),
    "decoded": ((70, 96, 160), 67, True, "sm_80"),
}
UNROTATE = {
    "masked": ((48, 96), 96, f32, True, "sm_100"),
    "cropped, bf16": ((33, 96), 67, bf16, True, "sm_90"),
    "no mask": ((5, 32), 32, f32, False, "sm_100"),
    "size 16": ((33, 112), 100, f32, True, "sm_100", 16),
    "size 64": ((33, 128), 100, f32, True, "sm_90", 64),
    "size 128": ((9, 256), 256, f32, False, "sm_100", 128),
    "no rotation, half a group": ((9, 48), 33, f32, True, "sm_100", 0),
}
GROUPED = {
    "fprop": ("fprop", (32, 32, 160, 192), (64, 96), "sm_100", False),
    "fprop, odd": ("fprop", (0, 0, 224), (96, 32), "sm_120", False),
    "dgrad": ("dgrad", (64, 64, 96, 192), (64, 160), "sm_100", False),
    "dgrad, unrotated": ("dgrad", (32, 192), (32, 96), "sm_100", True),
    "wgrad": ("wgrad", (32, 32, 160, 192), (64, 96), "sm_100", False),
    "wgrad, unrotated": ("wgrad", (0, 96, 224), (70, 96), "sm_100", True),
    "fprop, decoded": ("fprop", (32, 32, 160, 192), (64, 96), "sm_90", False),
    "wgrad, decoded": ("wgrad", (32, 32, 160, 192), (64, 96), "sm_80", True),
    "fprop, nvfp4": ("fprop", (32, 32, 160, 192), (64, 96), "sm_100", False, "nvfp4"),
    "dgrad, nvfp4": ("dgrad", (64, 64, 96, 192), (64, 160), "sm_120", False, "nvfp4"),
    "wgrad, nvfp4": ("wgrad", (0, 96, 224), (70, 96), "sm_120", True, "nvfp4"),
    "wgrad, nvfp4, decoded": ("wgrad", (32, 32, 160, 192), (64, 96), "sm_90", False, "nvfp4"),
    "fprop, mxfp8": ("fprop", (0, 0, 224), (96, 32), "sm_120", False, "mxfp8"),
    "dgrad, mxfp8": ("dgrad", (32, 192), (32, 96), "sm_100", True, "mxfp8"),
    "wgrad, mxfp8": ("wgrad", (32, 32, 160, 192), (64, 96), "sm_100", False, "mxfp8"),
    "fprop, mxfp8, decoded": ("fprop", (32, 32, 160, 192), (64, 96), "sm_80", False, "mxfp8"),
}


@pytest.fixture(scope="module")
def made_all(once):
    calls = {("codes", key): ("run_codes", *case) for key, case in CODES.items()}
    calls |= {("product", key): ("run_product", *case) for key, case in PRODUCTS.items()}
    calls |= {("unrotated", key): ("run_unrotated_product", *case) for key, case in UNROTATED.items()}
    calls |= {("grouped", key): ("run_grouped", *case) for key, case in GROUPED.items()}
    calls |= {("unrotate", key): ("run_unrotate", *case) for key, case in UNROTATE.items()}
    calls |= {("fused", kind): ("run_fused_quantize", kind, "sm_100") for kind in ("swiglu", "rms norm")}
    calls |= {
        ("epilogue", target): ("run_product_with_epilogue", (130, 96, 160), target) for target in ("sm_100", "sm_120")
    }
    return once("generated_ops", lambda: in_interpreter("generated_ops:run_all", calls, timeout=600))


@pytest.fixture
def made(made_all):
    def of(*key):
        assert not isinstance(made_all[key], str), made_all[key]
        return made_all[key]

    return of


@pytest.mark.parametrize("case", CODES)
def test_codes_scales_and_masks(made, case):
    result = made("codes", case)
    assert result["wrong"] == {}
    op, arguments = CODES[case][:2]
    transposed = op == "quantize" and arguments[1]
    assert result["templates"] == ["quantize_transposed" if transposed else op]


def assert_rounded(made, expected, magnitude, dtype):
    """float32 sums of `expected`, in another order, rounded to `dtype`: 2^-20 of the magnitudes that were summed (sums of
    up to 288 products of 24 bits), and half a unit in the last place of a float of `dtype`, twice at most."""
    bound = magnitude * 2.0**-20 + expected.abs() * (0 if dtype == f32 else torch.finfo(dtype).eps)
    nan = expected.isnan()
    assert torch.equal(made.isnan(), nan)
    assert ((made.float() - expected).abs() <= bound)[~nan].all()


@pytest.mark.parametrize("case", PRODUCTS)
def test_products(made, case):
    result = made("product", case)
    dtype, nan, target = PRODUCTS[case][3:]
    assert result["made"].dtype == dtype
    library = target == "sm_80" or case in DECODED
    if dtype == bf16 and library:  # the interpreter and the library round, then alpha multiplies
        result["magnitude"] = result["magnitude"] + 2.0**12 * result["expected"].abs().nan_to_num()
    assert_rounded(result["made"], result["expected"], result["magnitude"], dtype)
    assert result["expected"].isnan().any() == nan
    assert result["templates"] == ([] if case in DECODED else TEMPLATES[target])


def relative(made, expected):
    return ((made.float() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("case", UNROTATED)
def test_products_rotated_back(made, case):
    """In one kernel on FP4 tensor cores, and on FP8 ones unless the result is float32, for a rotation of 32. On FP4 ones the
    product isn't rounded in between."""
    result = made("unrotated", case)
    assert result["made"].shape == result["expected"].shape
    assert relative(result["made"], result["expected"]) < 2**-8
    *_, target, _, rotation, dtype = (*UNROTATED[case], *("mxfp4", 32, bf16)[len(UNROTATED[case]) - 4 :])
    inside = target != "sm_80" and rotation == 32 and (dtype != f32 or target in ("sm_100", "sm_120"))
    separate = [] if inside else ["unrotate"]
    assert result["templates"] == TEMPLATES[target] + separate


@pytest.mark.parametrize("case", UNROTATE)
def test_unrotate(made, case):
    result = made("unrotate", case)
    dtype, masked = UNROTATE[case][2:4]
    finite = result["expected"].isfinite()
    assert finite.all() == masked
    assert torch.equal(result["made"].isfinite(), finite)
    if dtype == f32:
        assert torch.equal(result["made"][finite], result["expected"][finite])
    else:  # the interpreter truncates to bf16
        close = (result["made"].float() - result["expected"].float()).abs() <= result["expected"].float().abs() * 2**-7
        assert close[finite].all()
    assert result["templates"] == ["unrotate"]


@pytest.mark.parametrize(("kind", "count"), [("swiglu", 1), ("rms norm", 2)])
def test_what_feeds_a_quantize_is_computed_in_its_kernel(made, kind, count):
    """The norm's statistics are a kernel of their own. silu, by another exponential function, flips a code now and then."""
    result = made("fused", kind)
    assert result["kernels"] == count
    assert result["templates"] == ["quantize"]
    assert result["same"] > 0.999


@pytest.mark.parametrize("target", ["sm_100", "sm_120"])
def test_what_follows_a_product_is_computed_in_its_kernel(made, target):
    """Bias, gelu and residual; besides it only the two kernels that arrange the scales, where there are any."""
    result = made("epilogue", target)
    assert result["kernels"] == (3 if target == "sm_100" else 1)
    assert relative(result["made"], result["expected"]) < 2**-7


@pytest.mark.parametrize("case", GROUPED)
def test_grouped_products(made, case):
    result = made("grouped", case)
    assert result["templates"] == ["scaled_grouped_mm"]
    assert result["kernels"] == 1
    difference = (result["made"] - result["expected"]).abs().max()
    assert difference < 1e-4 * result["expected"].abs().max()
