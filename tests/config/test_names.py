"""Module and parameter names are those of `named_modules()`, whatever Dynamo and wrappers make of them."""

from __future__ import annotations

import copy

import pytest
import torch
from models import Attention, Block, Net

from quartet_compile import explain
from quartet_compile._compat import root_name
from quartet_compile.config.names import clean, lineage, matches

SOURCES = {
    "L['self']": "",
    "L['self'].up": "up",
    "L['self']._modules['layers']._modules['0']._modules['up']._parameters['weight']": "layers.0.up.weight",
    "L['self']._modules['_orig_mod']._modules['up']": "up",
    "L['self']._modules['layers']._modules['0']._modules['_checkpoint_wrapped_module']._modules['up']": "layers.0.up",
    "L['self']._modules['_fsdp_wrapped_module']._modules['up']": "up",
    "L['self']._modules['module']._modules['up']._parameters['weight']": "up.weight",
    "L['self']._buffers['cos']": "cos",
    "G['model']._modules['up']": "up",
    "G['__import_my_dot_script'].model.layers.0.up": "layers.0.up",
    "L['fn'].__closure__[0].cell_contents._modules['layers']._modules['0']": "layers.0",
    "L['model'].__self__._modules['up']": "up",
    "L['self'].experts[3].up": "experts.3.up",
    "L['self'].towers[\"left\"].up": "towers.left.up",
    "L['args'][0]._modules['layers']._modules['0'].up": "layers.0.up",
    "L['args'][1].up": "1.up",
    "L['w']": "",
}


@pytest.mark.parametrize("source", SOURCES)
def test_a_dynamo_source_becomes_the_users_name(source):
    assert clean(source) == SOURCES[source]


@pytest.mark.parametrize("name", ["layers.0.up", "modules", "a.module.b"])
def test_a_users_name_stays_as_it_is(name):
    assert clean(name) == name


@pytest.mark.parametrize(
    "source, name", [("L['w']", "w"), ("G['table'][0]", "table"), ("G['__import_my'].w", "w"), ("w", "w")]
)
def test_the_root_of_a_source_is_a_variable(source, name):
    assert root_name(source) == name


def test_lineage_has_the_name_and_all_its_ancestors():
    assert lineage("layers.0.up") == ["layers.0.up", "layers.0", "layers"]


@pytest.mark.parametrize(
    "pattern, name, expected",
    [
        ("layers.0", "layers.0.up", True),
        ("layers.*", "layers.0.up", True),
        ("*.up", "layers.0.up", True),
        ("layers.1", "layers.10.up", False),
        ("up", "layers.0.up", False),
        ("Layers.0", "layers.0.up", False),
        ("layers.[01].up", "layers.1.up", True),
    ],
)
def test_a_glob_matches_a_name_or_an_ancestor(pattern, name, expected):
    assert matches(pattern, [name]) is expected


class Wrapped(torch.nn.Module):
    """A model inside another, as DDP and torch.compile keep it."""

    def __init__(self, attribute: str, model: torch.nn.Module) -> None:
        super().__init__()
        self.add_module(attribute, model)
        self.attribute = attribute

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return getattr(self, self.attribute)(x)


def names(model, x=None):
    return [site.name for site in explain(model, torch.randn(2, 16, 64) if x is None else x).sites]


NET = ["layers.0.up", "layers.0.down", "out"]


@pytest.mark.parametrize("wrapper", ["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_wrappers_do_not_show(wrapper):
    assert names(Wrapped(wrapper, Net(blocks=1))) == NET


def test_a_function_over_a_model_has_the_models_names():
    model = Net(blocks=1)

    def step(x):
        return model(x).sum()

    assert names(step) == NET
    assert names(lambda x: step(x)) == NET


def test_a_method_has_the_models_names():
    assert names(Net(blocks=1).forward) == NET


def test_layers_that_share_a_weight_keep_names_of_their_own():
    model = Net(blocks=2)
    model.layers[1].up.weight = model.layers[0].up.weight
    assert names(model)[:4] == ["layers.0.up", "layers.0.down", "layers.1.up", "layers.1.down"]


def test_products_of_parameters_in_plain_functions_are_named_after_them():
    weights = {"left": torch.nn.Parameter(torch.randn(64, 32)), "right": torch.nn.Parameter(torch.randn(64, 32))}
    sites = explain(lambda x, w: x @ w["left"] + x @ w["right"], torch.randn(4, 64), weights).sites
    assert [site.name for site in sites] == ["w['left']", "w['right']"]


def test_copies_of_one_layer_have_names_of_their_own():
    block = Block()
    model = torch.nn.Sequential(block, copy.deepcopy(block))
    assert names(model) == ["0.up", "0.down", "1.up", "1.down"]


def test_a_layer_used_twice_has_a_line_for_each_place():
    block = Block()
    assert names(torch.nn.Sequential(block, block)) == ["0.up", "0.down", "1.up", "1.down"]


class Borrows(torch.nn.Module):
    """Multiplies with a parameter of its child, without calling the child."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.inner.weight)


def test_a_weight_that_its_owner_does_not_use_itself_is_named_after_the_owner():
    assert names(torch.nn.Sequential(Borrows())) == ["0.inner"]


def test_a_tied_weight_is_named_after_the_module_that_uses_it():
    model = torch.nn.ModuleDict({"embed": torch.nn.Embedding(80, 64), "out": torch.nn.Linear(64, 80, bias=False)})
    model["out"].weight = model["embed"].weight
    model.forward = lambda ids: model["out"](model["embed"](ids))
    assert names(model, torch.zeros(2, 16, dtype=torch.long)) == ["out"]


def test_attention_is_named_after_its_module():
    model = torch.nn.Sequential(Attention())
    assert names(model) == ["0.q_proj", "0.k_proj", "0.v_proj", "0", "0.o_proj"]
