"""A Llama block, forward and backward, as Inductor generates it for a GPU, in Triton's interpreter: loss and gradients are
the reference's."""

from __future__ import annotations

import functools
from collections import Counter

import pytest
import torch

pytest.importorskip("triton")
from interpreted_module import in_interpreter

# q, k and v share X, and gate and up; each of the 7 weights; each of the 4 distinct X and 7 W again; each dY.
QUANTIZING = {"quantize": 4 + 7, "requantize": 4 + 7, "quantize_pair": 7}
TEMPLATES = {
    "sm_100": {"scaled_mm_tma": 7 + 14},  # all of the backward products rotated back in the same kernel
    "sm_90": {"scaled_mm_fp8": 7 + 14, "unrotate": 14, "decode_fp8": 11 + 25},  # an operand is decoded once
}


@pytest.fixture(
    scope="module", params=["sm_100", "sm_90", "sm_100 dynamic", pytest.param("sm_90 dynamic", marks=pytest.mark.slow)]
)
def result(request, once):
    target, _, dynamic = request.param.partition(" ")
    run = functools.partial(in_interpreter, "generated_model:run", target, torch.float32, bool(dynamic))
    return request.param, once(f"generated_model {request.param}", run)


def cosine(one, other):
    one, other = (torch.cat([g.flatten() for g in gradients.values()]) for gradients in (one, other))
    return torch.nn.functional.cosine_similarity(one, other, 0).item()


def test_loss_and_gradients(result):
    _, made = result
    generated, expected, plain = (made[kind] for kind in ("made", "expected", "plain"))
    assert generated["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert cosine(generated["gradients"], expected["gradients"]) > 0.9999
    for name, gradient in generated["gradients"].items():
        assert (gradient - expected["gradients"][name]).norm() < 0.02 * expected["gradients"][name].norm(), name
    assert 0.9 < cosine(generated["gradients"], plain["gradients"]) < 0.999


def test_the_same_seed_gives_the_same_bits(result):
    _, made = result
    assert made["made"]["loss"] == made["again"]["loss"]
    for name, gradient in made["made"]["gradients"].items():
        assert torch.equal(gradient, made["again"]["gradients"][name]), name


def test_every_op_is_a_kernel_of_ours(result):
    target, made = result
    distinct = Counter(made["templates"])
    for name, most in {**QUANTIZING, **TEMPLATES[target.split()[0]]}.items():
        assert 0 < distinct.pop(name) <= most  # launches of one kernel share its code
    assert not distinct
