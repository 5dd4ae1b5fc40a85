"""The first and last blocks of a model, and regions: names as users write them."""

from __future__ import annotations

import copy

import pytest
import torch
from captured import decisions
from models import Block, Net
from rounding import assert_rounding, step
from torch import nn

import quartet_compile as qc
from quartet_compile import OptionError, PatternError, _compat
from quartet_compile.frontend.api import Backend

X = torch.randn(2, 16, 64)


def test_first_and_last():
    model = Net(blocks=4)
    chosen = qc.first_and_last_blocks(model, first=1, last=2)
    assert chosen == ["layers.0", "layers.2", "layers.3"]
    kept = {name for name, done in decisions(qc.explain(model, X, exclude=chosen)).items() if not done}
    assert kept == {f"layers.{block}.{part}" for block in (0, 2, 3) for part in ("up", "down")}
    assert qc.first_and_last_blocks(model) == []


def test_an_encoder_and_a_decoder_have_their_own():
    model = nn.Transformer(32, 2, num_encoder_layers=2, num_decoder_layers=3, dim_feedforward=64)
    assert qc.first_and_last_blocks(model, last=1) == ["encoder.layers.1", "decoder.layers.2"]


def test_names_under_wrappers():
    model = Net(blocks=2)
    model.layers[1] = torch.compile(model.layers[1])
    assert qc.first_and_last_blocks(model, last=1) == ["layers.1"]


@pytest.mark.parametrize(
    ("model", "counts", "said"),
    [
        (Block(), {"first": 1}, ["Block has no blocks", "exclude"]),
        (Net(blocks=2), {"first": 2, "last": 1}, ["2 blocks of 'layers'", "at most 2"]),
        (Net(blocks=2), {"first": -1}, ["first=-1", "0 or more"]),
        (Net(blocks=2), {"last": "1"}, ["last='1'"]),
    ],
)
def test_what_is_wrong_is_said(model, counts, said):
    with pytest.raises(OptionError) as caught:
        qc.first_and_last_blocks(model, **counts)
    assert all(part in str(caught.value) for part in said)


def test_regions_are_compiled_in_place_and_keep_their_names(graphs):
    model = Net(blocks=2)
    untouched = copy.deepcopy(model)
    keys = list(model.state_dict())
    assert qc.quartet(model, regions=["layers.*"], recipe="exact", exclude=["layers.*.down"]) is model
    assert_rounding(step(model, X), lambda: step(untouched, X))
    assert list(model.state_dict()) == keys
    found = {site.name: site.rewritten for graph in graphs for site in graph.sites}
    assert found["layers.0.up"] and not found["layers.0.down"]
    assert "out" not in found


def test_only_the_outermost_region_is_compiled():
    model = Net(blocks=2)
    qc.quartet(model, regions=["layers.*", "layers.0.up"])
    assert [name for name, module in model.named_modules() if "forward" in vars(module)] == ["layers.0", "layers.1"]


def test_wrong_regions():
    with pytest.raises(PatternError, match="region 'layer.*' matches no module"):
        qc.quartet(Net(), regions=["layer.*"])
    with pytest.raises(OptionError, match="needs a Module"):
        qc.quartet(lambda x: x, regions=["layers.*"])
    with pytest.raises(OptionError, match="a list of globs"):
        qc.quartet(Net(), regions="layers.*")


def test_the_regions_share_one_backend(monkeypatch):
    backends = set()
    monkeypatch.setattr(
        _compat, "compiled_forward", lambda module, backend, **_: backends.add(backend) or module.forward
    )
    qc.quartet(Net(blocks=3), regions=["layers.*"], exclude=["*.down"])
    assert len(backends) == 1 and isinstance(backends.pop(), Backend)


def decided(graphs):
    return {site.name: site.rewritten for graph in graphs for site in graph.sites}


def test_regions_share_their_code_only_where_the_rules_decide_the_same(graphs, recwarn):
    model = Net(blocks=4)
    untouched = copy.deepcopy(model)
    qc.quartet(model, regions=["layers.*"], exclude=qc.first_and_last_blocks(model, first=1, last=1))
    model(X.clone().requires_grad_()).sum().backward()
    parts = [f"layers.{block}.{part}" for block in (0, 1, 3) for part in ("up", "down")]
    assert decided(graphs) == {name: "layers.1" in name for name in parts}  # 2 has the code of 1
    for block, (ours, plain) in enumerate(zip(model.layers, untouched.layers, strict=True)):
        assert torch.allclose(ours(X), plain(X), atol=1e-5) == (block in (0, 3))
    assert not [warning for warning in recwarn if "quartet" in str(warning.message)]


def test_a_region_of_torchs_own_class_and_one_called_as_an_output_head(graphs):
    model = nn.ModuleDict({"body": nn.Linear(64, 64), "lm_head": nn.Linear(64, 64)})
    qc.quartet(model, regions=["body", "lm_head"])
    model["lm_head"](model["body"](X)).sum().backward()
    assert decided(graphs) == {"body": True, "lm_head": False}


def test_a_graph_break_that_makes_rules_shared_is_warned_of(graphs):
    model = Net(blocks=3, break_graph=True)
    with pytest.warns(
        UserWarning, match=r"exclude say of 'layers.1' and 'layers.0' can't differ.*regions=\['layers.\*'\]"
    ):
        qc.quartet(model, exclude=["layers.1"])(X)


@pytest.mark.parametrize("how", [{"exclude": ["*.up"]}, {"regions": ["layers.*"], "exclude": ["layers.1"]}], ids=str)
def test_without_such_rules_nothing_is_warned_of(graphs, recwarn, how):
    qc.quartet(Net(blocks=3, break_graph=True), **how)(X)
    assert not [warning for warning in recwarn if "can't differ" in str(warning.message)]
