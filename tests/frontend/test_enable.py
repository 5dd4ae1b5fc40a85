"""`enable`: what `torch.compile` makes of Inductor from then on is what `backend="quartet"` would make."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from models import Block, Net
from torch import nn

import quartet_compile as qc
from quartet_compile import _compat
from quartet_compile.process import process

X = torch.randn(2, 16, 64)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(process, "seen", {})
    yield
    qc.disable()


def step(model, function=None):
    """The gradients of one step, with the noise of a fixed seed."""
    model.zero_grad()
    torch.manual_seed(0)
    (model if function is None else function)(X).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def names(graphs):
    return {site.name: site.rewritten for graph in graphs for site in graph.sites}


def test_gradients_under_inductor_are_those_of_the_backend_and_what_was_compiled_stays():
    model = Block()
    early, late = torch.compile(model), torch.compile(model)
    plain = step(model, early)
    with qc.enable(recipe="quartet2", exclude=["down"]):
        enabled, in_place = torch.compile(model), copy.deepcopy(model)
        in_place.compile()
        copied = copy.deepcopy(late)
        assert equal(step(model, early), plain) and equal(step(model, late), plain)
        assert equal(step(copied._orig_mod, copied), plain)
    named = torch.compile(model, backend="quartet", options={"recipe": "quartet2", "exclude": ["down"]})
    expected = step(model, named)
    assert equal(step(model, enabled), expected) and equal(step(in_place), expected) and not equal(expected, plain)
    assert equal(step(model, torch.compile(model)), plain)


def test_names_and_options(graphs):
    with qc.enable(exclude=["layers.1"]):
        torch.compile(Net(blocks=2))(X)
    assert names(graphs) == {
        "layers.0.up": True,
        "layers.0.down": True,
        "layers.1.up": False,
        "layers.1.down": False,
        "out": True,
    }


def test_blocks_of_a_known_model_have_full_names_and_share_code_where_the_rules_agree(graphs):
    model = Net(blocks=4)
    with qc.enable(model, exclude=["layers.3.up"]):
        for layer in model.layers:
            layer.compile()
    model(X.clone().requires_grad_())
    assert len(graphs) == 2
    assert names(graphs) == {"layers.0.up": True, "layers.0.down": True, "layers.3.up": False, "layers.3.down": True}


def test_a_model_may_be_named_later(graphs):
    model = Net(blocks=2)
    qc.enable(exclude=["layers.1.up"])
    qc.enable(model, exclude=["layers.1.up"])
    model.layers[1].compile()
    model(X)
    assert names(graphs) == {"layers.1.up": False, "layers.1.down": True}


def test_the_warning_of_a_pattern_for_more_than_the_block_names_the_remedy(graphs):
    model = Net(blocks=2)
    with qc.enable(exclude=["layers.1.up"]):
        model.layers[1].compile()
    with pytest.warns(UserWarning, match="'up' would be it inside of a block: where blocks are compiled") as caught:
        model(X)
    assert any("quartet_compile.enable(model, ...)" in str(warning.message) for warning in caught)


def test_a_whole_model_is_not_said_to_be_a_block(graphs):
    with qc.enable(exclude=["layers.7"]):
        compiled = torch.compile(Net())
    with pytest.warns(UserWarning, match="matches no module in the graphs compiled so far. quartet_compile.explain"):
        compiled(X)


@pytest.mark.parametrize("given", [{"recipe": "quartet2"}, {"exclude": ["up"]}, {"inductor": {"max_autotune": True}}])
def test_other_options_while_enabled_are_an_error(given):
    qc.enable(recipe="quartet")
    with pytest.raises(qc.OptionError, match=r"enable got enable.*is in force.*quartet_compile.disable\(\) first"):
        qc.enable(**given)
    qc.disable()
    qc.enable(**given)
    assert process.enabled.options == given


def test_the_same_options_again_are_no_error_and_an_inner_block_leaves_the_outer_one_in_force():
    with qc.enable():
        with qc.enable(recipe="quartet"):
            pass
        assert process.enabled is not None
    assert process.enabled is None


def test_an_error_inside_of_the_block_ends_it():
    with pytest.raises(KeyError), qc.enable():
        raise KeyError
    assert process.enabled is None


@pytest.mark.parametrize(
    "arguments, options, error",
    [
        ((), {"recipes": 1}, qc.OptionError),
        ((), {"recipe": "none"}, qc.RecipeError),
        (("quartet",), {}, qc.OptionError),
        ((Net(),), {"exclude": ["nowhere"]}, qc.PatternError),
    ],
)
def test_wrong_options_change_nothing(arguments, options, error):
    with pytest.raises(error):
        qc.enable(*arguments, **options)
    assert process.enabled is None


def test_options_of_inductor_itself_go_on_to_it(monkeypatch):
    given = []
    monkeypatch.setattr(_compat, "compile_fx", lambda gm, inputs, patches: given.append(patches) or gm)
    with qc.enable(inductor={"max_autotune": True, "fallback_random": True}):
        torch.compile(Block(), options={"max_autotune": False, "epilogue_fusion": False})(X)
        torch.compile(Block(), mode="max-autotune-no-cudagraphs")(X)
    options = [{key: value for key, value in patches.items() if "joint" not in key} for patches in given]
    assert options[0] == {"max_autotune": False, "epilogue_fusion": False, "fallback_random": True}
    assert options[1]["max_autotune"] and options[1]["fallback_random"]


def test_a_pass_of_the_users_own_is_not_lost():
    with (
        qc.enable(),
        pytest.raises(qc.OptionError, match="'joint_custom_pre_pass' is what backend='quartet' itself uses"),
    ):
        torch.compile(Block(), options={"joint_custom_pre_pass": _compat.CustomGraphPass.__new__(_Nothing)})


class _Nothing(_compat.CustomGraphPass):
    def __call__(self, graph):
        pass

    def uuid(self):
        return None


def test_other_backends_are_left_alone(graphs):
    with qc.enable():
        torch.compile(Block(), backend="eager")(X)
    assert not graphs


def test_strict_reports_and_schedules_work_as_usual(graphs):
    model = Net(blocks=1)
    with qc.enable(recipe="quartet"):
        compiled = torch.compile(model)
    compiled(X)
    assert qc.set_recipe(compiled, "bf16").name == "quartet"
    compiled(X)
    assert [graph.sites[0].rewritten for graph in graphs] == [True, False]
    with qc.enable(strict=True):
        broken = torch.compile(Net(blocks=1, break_graph=True))
    with pytest.raises(qc.StrictError):
        broken(X)


def test_a_part_of_another_backends_model_is_told_of(graphs):
    model = nn.Sequential(Block())
    with qc.enable():
        model[0].compile()
    with pytest.warns(UserWarning, match="runs inside of what torch.compile compiles with the backend 'eager'"):
        torch.compile(model, backend="eager")(X)


def test_a_compiled_part_of_an_enabled_whole_is_one_graph(graphs):
    model = nn.Sequential(Block())
    with qc.enable(), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model[0].compile()
        torch.compile(model)(X)
    assert names(graphs) == {"0.up": True, "0.down": True}
