"""`eval="served-..."`: the forward pass that a server computes, against the same written with `qc.quantize`."""

import pytest
import torch
from torch import nn
from torch.nn.functional import gelu

import quartet_compile as qc
from quartet_compile.config.options import configure
from quartet_compile.config.served import SERVED, served

EVEN = "scale_rounding=even"
CASES = {
    "FP4 weights": ("quartet", "served-w4a16", "mxfp4-quest", None),
    "unrotated": ("quartet", "served-w4a16-unrotated", "mxfp4-quest,rotation=0", None),
    "activations too": ("quartet", "served-w4a4", "mxfp4-quest", EVEN),
    "activations too, unrotated": ("quartet", "served-w4a4-unrotated", "mxfp4-quest,rotation=0", f"rotation=0,{EVEN}"),
    "square blocks": ("jetfire-fp4", "served-w4a4", "mxfp4-rtn-2d", f"rotation=0,{EVEN}"),
    "NVFP4 weights": ("quartet2", "served-w4a16", "nvfp4-rtn-4over6", None),
}


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(80, 96), nn.GELU(), nn.Linear(96, 64)), torch.randn(48, 80)


def by_hand(layers, x, weight, activation):
    first, _, second = layers

    def linear(layer, h):
        h = h if activation is None else qc.quantize(h, activation).restore()
        return h @ qc.quantize(layer.weight, weight).restore().t() + layer.bias

    return linear(second, gelu(linear(first, x)))


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_evaluation_computes_what_is_served(case):
    recipe, as_, weight, activation = CASES[case]
    layers, x = model()
    y = torch.compile(layers, backend="quartet", options={"recipe": recipe, "eval": as_})(x)
    expected = by_hand(layers, x, weight, activation)
    torch.testing.assert_close(y, expected, rtol=0, atol=2e-6 * expected.abs().max().item())
    assert not torch.allclose(layers(x), expected, atol=1e-2)


def test_training_is_as_without():
    gradients = []
    for options in ({}, {"eval": "served-w4a4"}):
        layers, x = model()
        torch.manual_seed(1)
        torch.compile(layers, backend="quartet", options=options)(x).square().mean().backward()
        gradients.append([p.grad for p in layers.parameters()])
        torch._dynamo.reset()
    assert all(map(torch.equal, *gradients))


def test_the_report_says_that_only_weights_are_rounded():
    layers, x = model()
    compiled = torch.compile(layers, backend="quartet", options={"eval": "served-w4a16"})
    with torch.no_grad():
        report = qc.explain(compiled, x)
    assert [site.runs_in for site in report.sites] == ["fp4-weights", "fp4-weights"]
    assert "in FP4-weights, in 1 graph" in str(report) and "served-w4a16 of quartet" in str(report)


def test_each_rule_is_served_in_its_recipe():
    rules = [("0", "jetfire-fp4"), ("2", "bf16"), ("*", "quartet")]
    policy = configure({"recipe": rules, "eval": "served-w4a4"}).policy
    names = [recipe.name for _, recipe in policy.eval_recipe]
    assert names == ["served-w4a4 of jetfire-fp4", "bf16", "served-w4a4 of quartet"]
    assert [recipe.name for _, recipe in policy.recipe] == ["jetfire-fp4", "bf16", "quartet"]


def test_a_schedule_can_be_served_too():
    layers, x = model()
    compiled = torch.compile(layers, backend="quartet")
    qc.set_recipe(compiled, "jetfire-fp4", eval="served-w4a16")
    with torch.no_grad():
        expected = by_hand(layers, x, "mxfp4-rtn-2d", None)
        torch.testing.assert_close(compiled(x), expected, rtol=0, atol=2e-6 * expected.abs().max().item())


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"eval": "served-w4a8"}, ["'served-w4a8'", "did you mean", "served-w4a4-unrotated"]),
        ({"eval": "served-w4a4", "recipe": "quartet2"}, ["'quartet2'", "NVFP4", "eval='served-w4a16'"]),
        ({"eval": "served-w4a16", "recipe": "mxfp8"}, ["'mxfp8'", "FP4 weights", "leave eval out"]),
    ],
)
def test_what_can_not_be_served(options, expected):
    with pytest.raises(qc.RecipeError) as caught:
        configure(options)
    assert all(part in str(caught.value) for part in expected), caught.value


def test_weights_with_a_shrink_are_in_no_file():
    fprop = qc.Gemm(a=qc.quantizer("mxfp4-rtn,random_signs=False"), b=qc.quantizer("mxfp4-rtn,random_signs=False"))
    shrunk = qc.Recipe(name="shrunk", fprop=fprop, dgrad=None, wgrad=None)
    with pytest.raises(qc.RecipeError, match=r"shrink.*served-w4a16"):
        served(shrunk, "served-w4a4")
    assert served(shrunk, "served-w4a16").fprop.gain == 1 / 0.75


def test_a_recipe_in_high_precision_stays():
    assert all(served("bf16", as_) == qc.recipe("bf16") for as_ in SERVED)


@pytest.mark.parametrize("exact", ["a", "b"])
def test_one_operand_may_round_nothing(exact):
    """As in training with FP4 weights and high-precision activations: against autograd through the quantized operand."""
    quantizers = {"a": "mxfp4-quest", "b": "mxfp4-quest", exact: "exact-fixed"}
    gemm = qc.Gemm(**{side: qc.quantizer(name) for side, name in quantizers.items()})
    recipe = qc.Recipe(name=f"exact {exact}", fprop=gemm, dgrad=None, wgrad=None)
    layer, x = nn.Linear(64, 96, bias=False), torch.randn(40, 64, requires_grad=True)
    y = torch.compile(layer, backend="quartet", options={"recipe": recipe})(x)
    y.backward(dy := torch.randn_like(y))
    operands = [
        t if q == "exact-fixed" else qc.quantize(t, q).restore()
        for t, q in zip((x, layer.weight), quantizers.values(), strict=True)
    ]
    torch.testing.assert_close(y, operands[0] @ operands[1].t(), rtol=0, atol=1e-5)
    torch.testing.assert_close(x.grad, dy @ layer.weight, rtol=0, atol=1e-4)
    torch.testing.assert_close(layer.weight.grad, dy.t() @ x, rtol=0, atol=1e-4)
