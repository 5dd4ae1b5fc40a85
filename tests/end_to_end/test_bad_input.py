"""Inputs at the edge: what can't run in FP4 is kept with the reason, and nothing is lost when something fails."""

from __future__ import annotations

import importlib
import subprocess
import sys
import types

import pytest
import torch
from captured import compiled, decisions, reasons, sites
from models import Block, gradients, relative
from torch import nn

import quartet_compile as qc
from quartet_compile import _compat

TOLERANCE = 2e-5


def check_exact(model, *inputs, rewritten=True, **options):
    """Outputs and gradients of the compiled model under the recipe `exact` are those of the model."""
    function, backend = compiled(model, recipe="exact", **options)
    parameters = [p for p in (*getattr(model, "parameters", list)(), *inputs) if p.requires_grad]
    results = []
    for run in (model, function):
        y = run(*inputs)
        gradient = torch.linspace(-1, 1, max(y.numel(), 1))[: y.numel()].view_as(y).to(y.dtype)
        results.append([y, *torch.autograd.grad(y, parameters, gradient, allow_unused=True)])
    assert {site.rewritten for site in sites(backend)} == {rewritten}
    for result, expected in zip(results[1], results[0], strict=True):
        assert result.shape == expected.shape and result.dtype == expected.dtype
        assert result.numel() == 0 or relative(result, expected) < TOLERANCE or torch.equal(result, expected)


# What is kept.


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
def test_other_dtypes_are_kept_with_the_reason(dtype):
    model, x = nn.Linear(64, 64, dtype=dtype), torch.randn(8, 64, dtype=dtype)
    (reason,) = reasons(qc.explain(model, x)).values()
    name = str(dtype).removeprefix("torch.")
    assert reason == f"dtype {name}; FP4 replaces float32, bfloat16 and float16 only"
    y = compiled(model)[0](x)
    assert torch.allclose(y, model(x)) and y.dtype == dtype


def test_an_integer_matmul_is_kept_with_the_reason():
    weight = nn.Parameter(torch.randint(-9, 9, (64, 64)), requires_grad=False)
    x = torch.randint(-9, 9, (8, 64))

    def function(x, w):
        return x @ w

    assert reasons(qc.explain(function, x, weight)) == {
        "w": "dtype int64; FP4 replaces float32, bfloat16 and float16 only"
    }
    assert torch.equal(compiled(function)[0](x, weight), x @ weight)


@pytest.mark.parametrize(
    "inputs, outputs, reason",
    [
        (31, 64, "K is 31, below the group of 32"),
        (64, 31, "N is 31, below the group of 32"),
        (1, 1, "K is 1, below the group of 32"),
    ],
)
def test_small_matmuls_are_kept_with_the_reason(inputs, outputs, reason):
    model, x = nn.Linear(inputs, outputs), torch.randn(40, inputs)
    assert list(reasons(qc.explain(model, x, include=["*"])).values()) == [reason]
    check_exact(model, x, rewritten=False)


@pytest.mark.parametrize("inputs, outputs", [(32, 32), (33, 32), (32, 33)])
def test_the_smallest_that_is_rewritten(inputs, outputs):
    check_exact(nn.Linear(inputs, outputs), torch.randn(40, inputs, requires_grad=True))


@pytest.mark.parametrize("columns, error", [(33, "1.0"), (34, "0.13"), (67, "0.046")])
def test_a_last_group_of_few_columns_is_kept_where_quest_would_lose_it(columns, error):
    model, x = nn.Linear(columns, 64), torch.randn(40, columns)
    (reason,) = reasons(qc.explain(model, x)).values()
    tail = columns % 32
    assert reason.startswith(f"K is {columns}: {tail} column{'s' * (tail > 1)} would be left for the last group of 32")
    assert f"QuEST's error is {error}; make K a multiple of 32" in reason
    assert all(decisions(qc.explain(nn.Linear(36, 64), torch.randn(40, 36))).values())


# Shapes and layouts.


@pytest.mark.parametrize("shape", [(0, 64), (2, 0, 64), (0, 0, 64)])
@pytest.mark.parametrize("recipe", ["exact", "quartet"])
def test_zero_rows(shape, recipe):
    model, x = Block(), torch.randn(shape, requires_grad=True)
    function, backend = compiled(model, recipe=recipe, include=["*"])
    y = function(x)
    y.sum().backward()
    assert [site.rewritten for site in sites(backend)] == [True, True]
    assert y.shape == shape and x.grad.shape == shape
    for parameter in model.parameters():
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))


def test_one_vector_is_one_row():
    check_exact(nn.Linear(64, 64), torch.randn(64, requires_grad=True), include=["*"])


@pytest.mark.parametrize("rows, rewritten", [(2, False), (15, False), (16, True)])
def test_few_rows_are_kept_in_training(rows, rewritten):
    """As those of adaLN and of timesteps, whose rows are the batch; not in inference, where one token is a row."""
    model, x = nn.Linear(64, 96), torch.randn(rows, 64)
    report = qc.explain(model, x)
    assert set(decisions(report).values()) == {rewritten}
    if not rewritten:
        (reason,) = reasons(report).values()
        assert reason == f"M is {rows} in training, and backward has groups of 32 rows; include=['*'] rewrites it too"
        assert all(decisions(qc.explain(model, x, include=["*"])).values())
    with torch.no_grad():
        assert all(decisions(qc.explain(model, x)).values())


LAYOUTS = {
    "transposed": lambda: torch.randn(64, 40).t(),
    "every other row": lambda: torch.randn(80, 64)[::2],
    "every other column": lambda: torch.randn(40, 128)[:, ::2],
    "a column slice": lambda: torch.randn(40, 200)[:, 7:71],
    "expanded rows": lambda: torch.randn(1, 64).expand(40, 64),
    "expanded columns": lambda: torch.randn(40, 1).expand(40, 64),
    "permuted batches": lambda: torch.randn(5, 64, 8).permute(2, 0, 1),
    "channels last": lambda: torch.randn(2, 20, 64).transpose(0, 1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_inputs_that_are_not_contiguous(layout):
    torch.manual_seed(0)
    check_exact(nn.Linear(64, 96), LAYOUTS[layout]().requires_grad_())


@pytest.mark.parametrize("layout", ["transposed", "every other row", "every other column", "a column slice"])
def test_weights_that_are_not_contiguous(layout):
    torch.manual_seed(0)
    weight = nn.Parameter(LAYOUTS[layout]())
    check_exact(lambda x, w: x @ w.t(), torch.randn(33, 64, requires_grad=True), weight)


@pytest.mark.parametrize("reduce", [torch.sum, torch.mean, lambda y: y.sum(0)[3]])
def test_gradients_that_are_expanded(reduce):
    torch.manual_seed(0)
    model, x = nn.Linear(64, 96), torch.randn(40, 64, requires_grad=True)
    function, _ = compiled(lambda x: reduce(model(x)), recipe="exact")
    expected = torch.autograd.grad(reduce(model(x)), [x, *model.parameters()])
    result = torch.autograd.grad(function(x), [x, *model.parameters()])
    assert all(relative(a, b) < TOLERANCE for a, b in zip(result, expected, strict=True))


def test_a_gradient_from_outside_that_is_expanded():
    torch.manual_seed(0)
    model, x = nn.Linear(64, 96), torch.randn(40, 64, requires_grad=True)
    function, _ = compiled(model, recipe="exact")
    gradient = torch.randn(1, 96).expand(40, 96)
    expected = torch.autograd.grad(model(x), [x, *model.parameters()], gradient)
    result = torch.autograd.grad(function(x), [x, *model.parameters()], gradient)
    assert all(relative(a, b) < TOLERANCE for a, b in zip(result, expected, strict=True))


def test_two_linears_without_anything_between_them():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.Linear(96, 64), nn.Linear(64, 40))
    check_exact(model, torch.randn(40, 64, requires_grad=True))


# A diverged run is visible.


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("recipe", ["quartet", "quartet-rtn"])
def test_a_nan_reaches_every_output_that_depends_on_it(recipe, value):
    torch.manual_seed(0)
    model, x = nn.Linear(64, 96), torch.randn(40, 64)
    x[7, 5] = value
    x.requires_grad_()
    y = compiled(model, recipe=recipe)[0](x)
    assert y[7].isnan().all()
    assert not y[[*range(7), *range(8, 40)]].isnan().any()
    y.nan_to_num().sum().backward()
    assert model.weight.grad.isnan().any()


def test_a_nan_in_the_gradient_reaches_both_gradients():
    torch.manual_seed(0)
    model, x = nn.Linear(64, 96, bias=False), torch.randn(40, 64, requires_grad=True)
    gradient = torch.randn(40, 96)
    gradient[7, 5] = float("inf")
    compiled(model)[0](x).backward(gradient)
    assert x.grad[7].isnan().all()
    assert not x.grad[8:].isnan().any()
    assert model.weight.grad[5].isnan().all()
    assert not model.weight.grad[6:].isnan().any()


# The user's own errors.


class Raises(Block):
    def forward(self, x: torch.Tensor, fail: bool = True) -> torch.Tensor:
        y = super().forward(x)
        if fail:
            raise KeyError("a message of the model's own")
        return y


@pytest.mark.parametrize("backend", ["quartet", "captured"])
def test_a_models_own_error_survives_and_its_parameters_too(backend):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, x = Raises(), torch.randn(8, 64)
    gradients(model, x, function=lambda x: model(x, False))
    before = {name: (p.detach().clone(), p.grad.clone()) for name, p in model.named_parameters()}
    function = torch.compile(model, backend="quartet") if backend == "quartet" else compiled(model)[0]
    with pytest.raises(KeyError, match="a message of the model's own"):
        function(x)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name][0]) and torch.equal(parameter.grad, before[name][1])
    assert torch.isfinite(compiled(model)[0](x, False)).all()


def test_a_wrong_shape_is_the_models_error():
    model = Block()
    function, _ = compiled(model)
    with pytest.raises(Exception, match="63.*64"):
        function(torch.randn(8, 63))
    assert function(torch.randn(8, 64)).shape == (8, 64)


# A torch that does not fit.


@pytest.fixture
def reloaded():
    """Import `_compat` again, and put everything back afterwards."""
    modules = [module for module in vars(_compat).values() if isinstance(module, types.ModuleType)]
    before = [(module, dict(vars(module))) for module in (_compat, *modules)]
    yield lambda: [importlib.reload(module) for module in (_compat, _compat.inductor)]
    for module, values in before:
        vars(module).update(values)


@pytest.mark.parametrize("version", ["2.10.1", "2.5.0+cpu", "1.13.1"])
def test_a_torch_that_is_too_old_says_which_is_needed(monkeypatch, reloaded, version):
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(ImportError) as caught:
        reloaded()
    assert f"needs torch >= 2.11, found {version}" in str(caught.value)
    assert "pip install -U torch" in str(caught.value)


@pytest.mark.parametrize("version", ["2.11.0", "2.13.0+cpu", "2.14.0a0+git123", "2.14.1"])
def test_a_torch_that_is_new_enough_is_taken(monkeypatch, reloaded, recwarn, version):
    monkeypatch.setattr(torch, "__version__", version)
    reloaded()
    assert not recwarn.list


@pytest.mark.parametrize("version", ["2.15.0", "2.15.0.dev20270101+cpu", "3.0.0"])
def test_a_torch_that_is_newer_than_those_tested_is_taken_with_a_warning(monkeypatch, reloaded, version):
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.warns(UserWarning, match="which is newer") as caught:
        reloaded()
    (warning,) = caught
    assert f"quartet_compile is tested with torch 2.11 to 2.14, found {version}, which is newer" in str(warning.message)
    assert "report it to Quartet Compile" in str(warning.message)


def test_the_warning_of_a_newer_torch_is_given_once_a_process():
    program = (
        "import torch; torch.__version__ = '3.0.0'; import quartet_compile, quartet_compile._compat as c; c.cache_dir()"
    )
    done = subprocess.run([sys.executable, "-W", "always", "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.count("QuartetWarning: quartet QC201: quartet_compile is tested with torch") == 1


def test_a_torch_that_lacks_a_private_part_says_which(monkeypatch):
    monkeypatch.delattr("torch._inductor.custom_graph_pass.CustomGraphPass")
    with pytest.raises(ImportError) as caught:
        _ = _compat.CustomGraphPass
    assert "needs torch._inductor.custom_graph_pass.CustomGraphPass, which torch" in str(caught.value)
    assert "It is tested with torch 2.11 to 2.14" in str(caught.value)


def test_a_private_module_that_is_gone_says_which(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch._inductor.compile_fx", None)
    with pytest.raises(ImportError, match="needs torch._inductor.compile_fx.compile_fx, which torch"):
        _compat.compile_fx(None, [], {})
