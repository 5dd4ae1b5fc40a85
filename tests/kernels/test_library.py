"""torch's own product beside our templates: where it is a choice, what it is called with, and that this computes the same.

The library is nowhere here: a model of what torch documents of it (tests/support/torch_scaled_mm.py) stands for it.
"""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

pytest.importorskip("triton")
from generated_ops import mxfp4, mxfp8, nvfp4
from interpreted_module import in_interpreter

import quartet_compile as qc
from quartet_compile._compat.fake_gpu import code_only, scratch_folder
from quartet_compile.capture.call import call_of
from quartet_compile.capture.capture import run_on_fakes
from quartet_compile.cross.backend import CrossBackend
from quartet_compile.cross.traffic import marker
from quartet_compile.kernels import library
from quartet_compile.kernels.architectures import LIBRARY_VARIABLE
from quartet_compile.kernels.lowering import templates
from quartet_compile.machines.targets import find_target
from quartet_compile.process import process

bf16, f16, f32 = torch.bfloat16, torch.float16, torch.float32
ops = torch.ops.quartet
MAKE = {"mxfp4": mxfp4, "nvfp4": nvfp4, "mxfp8": mxfp8}
LIBRARY_OP = "aten._scaled_mm_v2.default"


class Product(nn.Module):
    """A product of operands that are there."""

    def __init__(self, number_format, shape=(160, 96, 512), factor=1.0, dtype=bf16, rotation=None):
        super().__init__()
        (m, n, k), make = shape, MAKE[number_format]
        self.inputs = (*make(m, k, 1)[:3], *make(n, k, 2)[:3])
        epilogue = () if rotation is None else (None, rotation, n)
        self.how = number_format, factor, dtype, epilogue

    def forward(self, *x):
        number_format, factor, dtype, epilogue = self.how
        return ops.scaled_mm(*x[:3], number_format, *x[3:], number_format, factor, dtype, *epilogue)


def launched(product, target, use, monkeypatch, **options):
    """What the module that is generated for a product launches; no kernel is compiled."""
    monkeypatch.setenv(LIBRARY_VARIABLE, use)
    call, config = call_of(product, product.inputs, None, {"inductor": options})
    backend = CrossBackend(config, find_target(target), call.parameter_names())
    with scratch_folder() as folder, code_only(folder, backend.on_joint_graph), torch.no_grad():
        run_on_fakes(call, backend)
    return [launch for module in backend.modules for launch in module.launches]


@pytest.fixture
def offered(monkeypatch):
    """The choices of each product that was lowered, by name; the first is taken."""
    found = []

    def select(name, choices, *args, **kwargs):
        found.append([choice.name.rpartition("_")[0] for choice in choices])
        return original(name, choices, *args, **kwargs)

    original = templates.autotune_select_algorithm
    monkeypatch.setattr(templates, "autotune_select_algorithm", select)
    return found


def is_decoded(target, product):
    """Whether it is Inductor's own product of bf16."""
    return target == "sm_90" and product.how[0] == "nvfp4"


CHOICES = {
    "mxfp4": ("sm_100", Product("mxfp4"), True),
    "mxfp4 on a B300": ("sm_103", Product("mxfp4"), True),
    "mxfp4, in which MSLK is for compute capability 10": ("sm_120", Product("mxfp4"), False),
    "mxfp4 with a factor, before which it would round": ("sm_100", Product("mxfp4", factor=16 / 9), False),
    "mxfp4 in float32": ("sm_100", Product("mxfp4", dtype=f32), False),
    "rotated back by a kernel of its own": ("sm_100", Product("mxfp4", rotation=16), True),
    "nvfp4": ("sm_100", Product("nvfp4"), True),
    "nvfp4 on an RTX 5090": ("sm_120", Product("nvfp4"), True),
    "nvfp4 in float32, with a factor": ("sm_103", Product("nvfp4", factor=16 / 9, dtype=f32), True),
    "mxfp8": ("sm_100", Product("mxfp8", dtype=f16), True),
    "mxfp8 on an RTX 5090": ("sm_120", Product("mxfp8"), True),
    "mxfp8 with a factor": ("sm_120", Product("mxfp8", factor=0.5), False),
    "columns that are no multiple of 16": ("sm_100", Product("nvfp4", shape=(160, 104, 512)), False),
    "K that is no multiple of 32": ("sm_100", Product("nvfp4", shape=(160, 96, 528)), False),
    "what is decoded to bf16": ("sm_90", Product("nvfp4"), False),
    "mxfp4 in FP8": ("sm_90", Product("mxfp4", factor=16 / 9), True),
    "mxfp4 in FP8, in float32": ("sm_90", Product("mxfp4", dtype=f32), False),
    "mxfp4 in FP8 on Ada": ("sm_89", Product("mxfp4"), False),
}


@pytest.mark.parametrize("target, product, legal", CHOICES.values(), ids=CHOICES)
def test_where_the_library_is_a_choice(offered, monkeypatch, target, product, legal):
    """Beside ours where Inductor measures; ours is the first, which is what isn't measured."""
    launched(product, target, "measured", monkeypatch, max_autotune=True)
    products = [names for names in offered if "scaled_mm" in names[0]]
    assert [names[-1].startswith("quartet_library") for names in products] == [legal] * len(products)
    assert len(products) == (not is_decoded(target, product))


def test_the_library_is_no_choice_where_nothing_is_measured_or_it_is_not_wanted(offered, monkeypatch):
    launched(Product("mxfp4"), "sm_100", "measured", monkeypatch)
    launched(Product("mxfp4"), "sm_100", "never", monkeypatch, max_autotune=True)
    launched(Product("mxfp4"), "sm_100", "measured", monkeypatch, max_autotune=True, deterministic=True)
    assert [names.count("quartet_library") for names in offered] == [0, 0, 0]


@pytest.mark.parametrize("target, product, legal", CHOICES.values(), ids=CHOICES)
def test_where_the_library_is_wanted_it_is_called_or_the_reason_is_logged(caplog, monkeypatch, target, product, legal):
    caplog.set_level(logging.INFO, "quartet_compile")
    launches = launched(product, target, "always", monkeypatch)
    assert [launch.number_format for launch in launches if launch.name == LIBRARY_OP] == [product.how[0]] * legal
    ours = [launch for launch in launches if (marker(launch.source) or ("",))[0].startswith("scaled_mm")]
    assert len(ours) == (not legal and not is_decoded(target, product))
    assert sum("is our template's, not the library's: " in text for text in caplog.messages) == len(ours)
    assert not any("by the library" in text for text in caplog.messages)


@pytest.mark.parametrize("target", ["sm_90", "sm_100"])
def test_a_product_that_is_rotated_back_has_the_library_only_where_it_is_wanted(offered, monkeypatch, target):
    """Then the rotation is a kernel of its own, whose time Inductor wouldn't count."""
    number_format = {"sm_90": "mxfp4", "sm_100": "nvfp4"}[target]
    product = Product(number_format, rotation=32)
    launched(product, target, "measured", monkeypatch, max_autotune=True)
    assert not any(name.startswith("quartet_library") for names in offered for name in names)
    launches = launched(product, target, "always", monkeypatch)
    assert [launch.number_format for launch in launches if launch.name == LIBRARY_OP] == [number_format]
    assert sum((marker(launch.source) or ("",))[0] == "unrotate" for launch in launches) == 1


def test_a_call_counts_as_a_product_of_its_format(monkeypatch):
    """In the prediction: 2 M N K operations at the rate of FP4, and in bf16 the bytes of bf16 operands."""
    monkeypatch.setenv(LIBRARY_VARIABLE, "always")
    product = Product("mxfp4")
    with torch.no_grad():
        artifact = qc.cross_compile(product, *product.inputs, target="sm_100")
    (call,) = (call for call in artifact.library_calls if call.name == "aten._scaled_mm_v2")
    assert call.kind == "extern (library)"
    assert (call.operations, call.bytes) == (2 * 160 * 96 * 512, 160 * 256 + 96 * 256 + (256 + 128) * 16 + 160 * 96 * 2)
    (matmul,) = artifact.matmuls
    assert (matmul.number_format, matmul.m, matmul.n, matmul.k) == ("mxfp4", 160, 96, 512)
    target = find_target("sm_100")
    assert matmul.product.full == call.predicted_seconds < matmul.bf16_seconds
    assert matmul.bf16_seconds >= 2 * 160 * 96 * 512 / target.rates["bf16"]


CALLS = {
    "mxfp4": ("mxfp4", (130, 144, 288), 1.0, bf16, "sm_100"),
    "mxfp4, K of 128": ("mxfp4", (33, 48, 128), 1.0, bf16, "sm_103"),
    "nvfp4": ("nvfp4", (40, 80, 544), 16 / 9, f32, "sm_100"),
    "nvfp4 in one step": ("nvfp4", (40, 80, 96), 1.0, bf16, "sm_100"),
    "nvfp4, scales in rows": ("nvfp4", (200, 80, 288), 16 / 9, bf16, "sm_120"),
    "mxfp8": ("mxfp8", (130, 144, 160), 1.0, f32, "sm_100"),
    "mxfp8, scales in rows": ("mxfp8", (70, 48, 288), 1.0, f16, "sm_120"),
    "mxfp4 in FP8": ("mxfp4", (130, 144, 288), 1.0, bf16, "sm_90"),
    "mxfp4 in FP8, with a factor": ("mxfp4", (33, 48, 96), 16 / 9, bf16, "sm_90"),
    "mxfp4 beyond FP8": ("mxfp4_wide", (130, 144, 160), 16 / 9, bf16, "sm_90"),
}


@pytest.fixture(scope="module")
def made(once):
    calls = {key: ("run_library_product", *case) for key, case in CALLS.items()}
    return once("library", lambda: in_interpreter("generated_ops:run_all", calls))


@pytest.mark.parametrize("case", CALLS)
def test_what_the_library_is_called_with_gives_the_product(made, case):
    """Within accumulation error: sums of `expected` in another order, rounded once."""
    result, (_, (m, n, k), _, dtype, _) = made[case], CALLS[case]
    assert not isinstance(result, str), result
    templates = ["decode_fp8", "decode_fp8"] if "FP8" in case else []
    assert (result["calls"], result["templates"], result["made"].dtype) == (1, templates, dtype)
    bound = result["magnitude"] * (k + 2) * 2.0**-23 + result["expected"].abs() * torch.finfo(dtype).eps
    assert ((result["made"].float() - result["expected"]).abs() <= bound).all()
    (taken,) = result["taken for"]
    if case == "mxfp4" and torch.__version__ < "2.14":
        assert "for MX scaling scale_a must have" in taken  # it counts packed columns: 144 for 288
    else:
        assert taken == ((m, n), dtype)


def test_a_product_is_reported_once_and_not_while_inductor_measures(caplog, monkeypatch):
    caplog.set_level(logging.INFO, "quartet_compile")
    monkeypatch.setattr(process, "library_products", set())
    with library.trying():
        library.say("mxfp4", 160, 96, 512)
    assert not caplog.messages
    for _ in range(2):
        library.say("mxfp4", 160, 96, 512)
    said = "product of mxfp4, 160 x 96 x 512 (M N K): by the library, torch.nn.functional.scaled_mm"
    assert caplog.messages == [said]
