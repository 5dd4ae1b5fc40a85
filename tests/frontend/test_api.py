"""`quartet` on a model, a class, a function and a method: validated at once, and the backend as in torch.compile."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch
from models import Block, Net, gradients
from rounding import assert_rounding
from torch import nn

import quartet_compile as qc
from quartet_compile import _compat
from quartet_compile.process import process

X = torch.randn(2, 16, 64)


def names(graphs):
    return {site.name: site.rewritten for graph in graphs for site in graph.sites}


REWRITTEN = {"up": True, "down": True}


def test_a_module(graphs):
    model = Block()
    assert_rounding({"y": qc.quartet(model, recipe="exact")(X)}, lambda: {"y": model(X)})
    assert names(graphs) == REWRITTEN


def test_a_module_with_options(graphs):
    qc.quartet(Block(), exclude=["down"])(X)
    assert names(graphs) == {"up": True, "down": False}


def test_a_decorated_class(graphs):
    @qc.quartet
    class Decorated(Block):
        pass

    Decorated()(X)
    assert names(graphs) == REWRITTEN
    assert Decorated.__name__ == "Decorated"


def test_a_decorated_class_with_options_and_two_instances(graphs):
    @qc.quartet(recipe="exact", exclude=["down"])
    class Decorated(Block):
        """Its docstring."""

    first, second = Decorated(), Decorated()
    for model in (first, second):
        assert_rounding({"y": model(X)}, lambda model=model: {"y": Block.forward(model, X)})
    assert names(graphs) == {"up": True, "down": False}
    assert isinstance(first, Block) and Decorated.__doc__ == "Its docstring."


def test_a_decorated_class_inside_another_model(graphs):
    @qc.quartet
    class Decorated(Block):
        pass

    model = nn.Sequential(nn.Linear(64, 64), Decorated())
    model(X)
    assert names(graphs) == REWRITTEN


def test_a_decorated_method(graphs):
    class Decorated(Block):
        @qc.quartet(exclude=["up"])
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down(self.up(x))

    Decorated()(X)
    assert names(graphs) == {"up": False, "down": True}


def test_a_bound_method(graphs):
    model = Block()
    qc.quartet(model.forward, exclude=["up"])(X)
    assert names(graphs) == {"up": False, "down": True}


@pytest.mark.parametrize(
    "decorate", [qc.quartet, qc.quartet(), qc.quartet(recipe="quartet-rtn")], ids=["bare", "()", "o"]
)
def test_a_decorated_function_over_a_model(graphs, decorate):
    model = Net(blocks=1)

    @decorate
    def step(x: torch.Tensor) -> torch.Tensor:
        """What it does."""
        return model(x).square().mean()

    step(X).backward()
    assert names(graphs) == {"layers.0.up": True, "layers.0.down": True, "out": True}
    assert model.out.grad.abs().sum() > 0
    assert (step.__name__, step.__doc__) == ("step", "What it does.")


def test_a_function_of_parameters(graphs):
    function = qc.quartet(lambda x, kept, w: x @ kept + x @ w, exclude=["kept"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        function(X, nn.Parameter(torch.randn(64, 64)), nn.Parameter(torch.randn(64, 64)))
    assert names(graphs) == {"kept": False, "w": True}


def test_a_split_model_knows_full_names(graphs):
    model = Net(break_graph=True)
    qc.quartet(model, exclude=["layers.1.up"])(X)
    assert names(graphs) == {"layers.0.up": True, "layers.0.down": True, "layers.1.up": False, "layers.1.down": True}


@pytest.mark.parametrize(
    "pattern, message",
    [
        ("layers.2.*", r"'layers.2.\*' matches no module and no parameter of Net"),
        ("layer.0", r"'layer.0' .*did you mean 'layers.0'\?"),
        ("up", r"for instance: layers.0.up, layers.0.down, layers.1.up"),
        ("Out", r"did you mean 'out'\?"),
    ],
)
@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_is_an_error_before_compiling(graphs, option, pattern, message):
    with pytest.raises(qc.PatternError, match=message) as caught:
        qc.quartet(Net(), **{option: ["layers.0", pattern]})
    assert option in str(caught.value)
    assert graphs == []


def test_patterns_of_functions_methods_and_classes_are_checked_at_the_first_call(graphs):
    model = Block()

    class Decorated(Block):
        pass

    calls = [
        qc.quartet(lambda x: model(x), exclude=["nowhere"]),
        functools.partial(qc.quartet(Block.forward, exclude=["nowhere"]), model),
        qc.quartet(Decorated, exclude=["nowhere"])(),
        qc.quartet(lambda m, x: m(x), exclude=["nowhere"]),
    ]
    for call, inputs in zip(calls, [(X,), (X,), (X,), (model, X)], strict=True):
        with pytest.raises(qc.PatternError, match="'nowhere'"):
            call(*inputs)
    with pytest.raises(qc.PatternError, match="'nowhere'"):
        qc.quartet(model.forward, exclude=["nowhere"])
    assert graphs == []


def test_patterns_see_modules_parameters_and_second_places(graphs):
    block = Block()
    model = nn.Sequential(block, block)
    for pattern in ("0", "1.up", "*.down", "0.up.weight", "1.down.weight", "1.dropout"):
        qc.quartet(model, exclude=[pattern])


def test_the_models_state_is_left_alone(graphs):
    model = Net()
    keys, ids = list(model.state_dict()), [id(parameter) for parameter in model.parameters()]
    function = qc.quartet(model)
    gradients(model, X, function=function)
    assert list(model.state_dict()) == keys
    assert [id(parameter) for parameter in model.parameters()] == ids
    assert all(type(parameter) is nn.Parameter for parameter in model.parameters())
    Net().load_state_dict(model.state_dict())


@pytest.mark.parametrize("target", [3, "model", None.__class__, dict])
def test_what_can_not_be_compiled(target):
    with pytest.raises(qc.OptionError, match="expected a Module, a Module class, a function or a method"):
        qc.quartet(target)


def test_dynamic_and_fullgraph_are_passed_on(graphs):
    with pytest.raises(torch._dynamo.exc.Unsupported):
        qc.quartet(Net(break_graph=True), fullgraph=True)(X)
    qc.quartet(Block(), dynamic=True)(X)
    assert any(isinstance(site.shape[0], str) for graph in graphs for site in graph.sites)


# The backend by its name.


def test_a_bare_backend_warns_of_a_pattern_that_matches_nothing(monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(_compat, "compile_fx", lambda gm, inputs, config_patches: gm)
    monkeypatch.setattr(process, "seen", {})
    with pytest.warns(UserWarning, match="exclude pattern 'nowhere' matches no module") as caught:
        torch.compile(Block(), backend="quartet", options={"exclude": ["up", "nowhere"]})(X)
    messages = [str(warning.message) for warning in caught if "pattern" in str(warning.message)]
    assert len(messages) == 1
    assert "explain(model, *inputs) lists the names" in messages[0]


def test_the_backend_is_found_by_its_name_and_trains():
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Block(64, 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    function = torch.compile(model, backend="quartet", options={"recipe": "quartet-rtn"})
    target, losses = torch.randn(2, 16, 64), []
    for _ in range(8):
        loss = (function(X) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    report = qc.explain(function, X, recipe="quartet-rtn")
    assert {site.name: site.rewritten for site in report.sites} == REWRITTEN
