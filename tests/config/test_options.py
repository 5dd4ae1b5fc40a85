"""Options: what a user wrote wrong says got, expected and remedy; what was written right does what it says."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from captured import compiled, decisions, reasons, sites
from models import Block, ByFunction, Unequal, gradients
from rounding import assert_rounding
from torch import nn

import quartet_compile as qc
from quartet_compile import _compat
from quartet_compile.config.options import configure

X = torch.randn(32, 64)


class Model(nn.Module):
    """A body of two linears, and a head that is kept by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict(OrderedDict(up=nn.Linear(64, 96), down=nn.Linear(96, 64)))
        self.lm_head = nn.Linear(64, 80)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lm_head(self.body["down"](self.body["up"](x).relu()))


INVALID = {
    "option": ({"recipee": "quartet"}, "Unknown option 'recipee' (did you mean 'recipe'?)", "recipe, include, exclude"),
    "Inductor's option": (
        {"max_autotune": True},
        "Unknown option 'max_autotune'",
        "{'inductor': {'max_autotune': ...}}",
    ),
    "recipe": ({"recipe": "quarted"}, "Unknown recipe 'quarted' (did you mean 'quartet'?)", "quartet, quartet-rtn"),
    "recipe's type": (
        {"recipe": 4},
        "Option 'recipe': Got a recipe of type int",
        "expected a name or a quartet_compile",
    ),
    "eval recipe": ({"eval": "fp4"}, "Option 'eval': Unknown recipe 'fp4'", "Registered: quartet"),
    "a format": ({"recipe": "mxfp4"}, "Unknown recipe 'mxfp4' (did you mean 'quartet'?)", "Registered: quartet"),
    "a quantizer": ({"recipe": "mxfp4-sr"}, "'mxfp4-sr', which is a quantizer", "as those of 'quartet'"),
    "a single glob": ({"exclude": "up"}, "Option 'exclude' is 'up'", "expected a list of globs"),
    "glob's type": ({"include": [1]}, "Option 'include' is [1]", "expected a list of globs"),
    "empty glob": ({"include": [""]}, "Option 'include' is ['']", "expected a list of globs"),
    "globs' type": ({"include": 3}, "Option 'include' is 3", "as include=['*.router'"),
    "scope": ({"scope": "mark"}, "Option 'scope' is 'mark' (did you mean 'marked'?)", "expected 'all' or 'marked'"),
    "strict": ({"strict": "yes"}, "Option 'strict' is 'yes'", "expected True or False"),
    "mode": (
        {"mode": "max-autotuned"},
        "Unknown mode 'max-autotuned' (did you mean 'max-autotune'?)",
        "the modes are default",
    ),
    "inductor": ({"inductor": ["fast"]}, "Option 'inductor' is ['fast']", "expected a dict"),
    "inductor's key": (
        {"inductor": {"max_autotun": True}},
        "Unknown Inductor option 'max_autotun' (did you mean 'max_autotune'?)",
        "see torch._inductor.config",
    ),
    "inductor's value": (
        {"inductor": {"max_autotune": "yes"}},
        "Inductor option 'max_autotune' is 'yes'",
        "expected a value of type bool",
    ),
    "the pass's own hook": (
        {"inductor": {"joint_custom_pre_pass": None}},
        "'joint_custom_pre_pass' is what backend='quartet' itself uses",
        "leave it out",
    ),
}


@pytest.mark.parametrize("case", INVALID)
def test_what_is_wrong_says_got_expected_and_remedy(case):
    options, got, expected = INVALID[case]
    with pytest.raises((qc.OptionError, qc.RecipeError)) as caught:
        configure(options)
    assert got in str(caught.value)
    assert expected in str(caught.value)


def test_options_that_are_no_dict():
    with pytest.raises(qc.OptionError, match="options is 'quartet'; expected a dict"):
        configure("quartet")


@pytest.mark.parametrize("call", [qc.explain, qc.graph_diff, lambda m, x, **o: qc.quartet(m, **o)])
def test_every_entry_point_validates_at_once(call):
    with pytest.raises(qc.OptionError, match="did you mean 'exclude'"):
        call(Model(), X, excludes=["up"])


@pytest.mark.parametrize(
    "error, options",
    [(qc.OptionError, {"excludes": ["up"]}), (qc.RecipeError, {"recipe": "quarted"}), (qc.OptionError, {"strict": 1})],
)
def test_torch_compile_shows_the_error_itself(error, options):
    torch._dynamo.reset()
    model = Model()
    before, gradient = gradients(model, X)
    with pytest.raises(error) as caught:
        torch.compile(model, backend="quartet", options=options)(X)
    assert type(caught.value) is error
    assert isinstance(caught.value, torch._dynamo.exc.ShortenTraceback)
    after, same = gradients(model, X)
    assert torch.equal(before, after)
    assert all(torch.equal(gradient[name], same[name]) for name in gradient)


def test_torch_compile_checks_the_mode():
    torch._dynamo.reset()
    with pytest.raises(qc.OptionError, match="Unknown mode 'max-autotuned'"):
        torch.compile(Model(), backend="quartet", mode="max-autotuned")(X)


def test_a_mode_is_its_inductor_options_and_inductor_overrides_it():
    assert dict(configure({"mode": "max-autotune"}).inductor)["max_autotune"] is True
    assert dict(configure(mode="max-autotune").inductor)["max_autotune"] is True
    assert (
        dict(configure({"mode": "max-autotune", "inductor": {"max-autotune": False}}).inductor)["max_autotune"] is False
    )
    assert configure({"mode": "default"}).inductor == ()


def test_inductor_receives_the_options(monkeypatch):
    torch._dynamo.reset()
    seen = []

    def compile_fx(gm, inputs, config_patches):
        seen.append(config_patches)
        return gm

    monkeypatch.setattr(_compat, "compile_fx", compile_fx)
    torch.compile(Model(), backend="quartet", options={"inductor": {"max_autotune": True}, "mode": "default"})(X)
    (patches,) = seen
    assert patches["max_autotune"] is True
    assert type(patches["joint_custom_pre_pass"]).__name__ == "QuartetPass"


# What options mean.


ALL = {"body.up": True, "body.down": True, "lm_head": False}


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, ALL),
        ({"include": ["*"]}, {**ALL, "lm_head": True}),
        ({"include": ["lm_head"]}, {"body.up": False, "body.down": False, "lm_head": True}),
        ({"include": ["body"]}, ALL),
        ({"exclude": ["body"]}, dict.fromkeys(ALL, False)),
        ({"exclude": ["*.down"]}, {**ALL, "body.down": False}),
        ({"exclude": ["body.down.weight"]}, {**ALL, "body.down": False}),
        ({"include": ["*"], "exclude": ["body.*"]}, {"body.up": False, "body.down": False, "lm_head": True}),
        ({"include": ["body.up"], "exclude": ["body.up"]}, dict.fromkeys(ALL, False)),
        ({"scope": "marked"}, dict.fromkeys(ALL, False)),
        ({"scope": "marked", "include": ["*"]}, dict.fromkeys(ALL, False)),
        ({"recipe": "bf16"}, dict.fromkeys(ALL, False)),
    ],
    ids=str,
)
def test_which_matmuls_are_rewritten(options, expected):
    assert decisions(qc.explain(Model(), X, **options)) == expected


def test_the_reason_is_the_rule_that_decided():
    report = qc.explain(Model(), X, include=["body.*", "*.up"], exclude=["*.up"])
    assert reasons(report) == {
        "body.up": "excluded by '*.up'",
        "body.down": "included by 'body.*'",
        "lm_head": "not in include",
    }
    assert set(reasons(qc.explain(Model(), X, recipe="bf16")).values()) == {"recipe 'bf16' keeps high precision"}
    assert "scope='marked'" in reasons(qc.explain(Model(), X, scope="marked"))["body.up"]


def test_the_recipe_may_be_an_object():
    quartet = qc.recipe("quartet")
    mine = qc.Recipe(name="mine", fprop=quartet.fprop, dgrad=quartet.dgrad, wgrad=qc.recipe("quartet-rtn").wgrad)
    report = qc.explain(Model(), X, recipe=mine)
    assert report.recipe == "mine"
    assert report.sites[1].gemms == {"fprop": "mxfp4-quest", "dgrad": "mxfp4-sr", "wgrad": "mxfp4-rtn"}


def test_eval_is_the_recipe_of_graphs_without_gradients():
    model = Model()
    function, backend = compiled(model, eval="bf16")
    with torch.no_grad():
        inference = function(X)
    assert not any(site.rewritten for site in sites(backend))
    assert_rounding({"y": inference}, lambda: {"y": model(X)})
    backend.graphs.clear()
    training = function(X)
    assert decisions(backend.graphs[0]) == ALL
    assert not torch.allclose(training, inference, atol=1e-3)


def test_without_eval_inference_computes_what_training_does():
    function, backend = compiled(Model())
    training = function(X)
    with torch.no_grad():
        assert torch.equal(function(X), training)
    assert [graph.training for graph in backend.graphs] == [True, False]


# strict


def test_strict_names_the_matmul_the_reason_and_the_remedy():
    with pytest.raises(qc.StrictError) as caught:
        qc.explain(ByFunction(Unequal), X.clone().requires_grad_(), strict=True)
    message = str(caught.value)
    assert "the matmul 'w' stays in high precision: its backward matmuls can't be told apart" in message
    assert "exclude=['w']" in message and "strict=False" in message


def test_strict_accepts_what_the_user_or_a_rule_keeps():
    report = qc.explain(Model(), X, strict=True, exclude=["body.up"])
    assert decisions(report) == {**ALL, "body.up": False}
    model = ByFunction(Unequal)
    assert not any(decisions(qc.explain(model, X.clone().requires_grad_(), strict=True, exclude=["*"])).values())


def test_after_a_strict_error_the_model_trains():
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, x = ByFunction(Unequal), X.clone().requires_grad_()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model(X).square().mean().backward()
    optimizer.step()
    weight, gradient = model.w.detach().clone(), model.w.grad.clone()
    with pytest.raises(qc.StrictError):
        torch.compile(model, backend="quartet", options={"strict": True})(x)
    assert torch.equal(model.w, weight) and torch.equal(model.w.grad, gradient)
    assert optimizer.state[model.w]["step"] == 1
    function, _ = compiled(model, strict=False)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        losses.append(function(x).square().mean())
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]


def test_strict_of_quartet_refuses_graph_breaks():
    class Breaks(Block):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = super().forward(x)
            torch._dynamo.graph_break()
            return super().forward(y)

    torch._dynamo.reset()
    with pytest.raises(qc.StrictError, match="a part of the model can't be compiled: .*graph_break"):
        qc.quartet(Breaks(), strict=True)(X)
