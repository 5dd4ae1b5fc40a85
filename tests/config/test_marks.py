"""Marks: where they reach, which one wins, and that they are read again when they change."""

from __future__ import annotations

import pytest
import torch
from captured import compiled, decisions, reasons, sites
from models import gradients, relative
from torch import nn
from torch.utils.checkpoint import checkpoint

import quartet_compile as qc
from quartet_compile import fp4, no_fp4

X = torch.randn(32, 64)
MARKS = {"fp4": fp4, "no_fp4": no_fp4}


class Base(nn.Module):
    """Three linears; each test says which regions they run in."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(64, 64) for _ in range(3))


def rewritten(model, **options):
    return "".join(name for name, done in decisions(qc.explain(model, X, **options)).items() if done)


def test_a_with_block():
    class Model(Base):
        def forward(self, x):
            x = self.a(x)
            with no_fp4():
                x = self.b(x)
            return self.c(x)

    assert rewritten(Model()) == "ac"
    assert reasons(qc.explain(Model(), X))["b"] == "marked no_fp4"


def test_a_function():
    @no_fp4
    def middle(model, x):
        """Its docstring."""
        return model.b(x)

    class Model(Base):
        def forward(self, x):
            return self.c(middle(self, self.a(x)))

    assert rewritten(Model()) == "ac"
    assert (middle.__name__, middle.__doc__) == ("middle", "Its docstring.")


def test_a_method():
    class Model(Base):
        @fp4
        def middle(self, x):
            return self.b(x)

        def forward(self, x):
            return self.c(self.middle(self.a(x)))

    assert rewritten(Model(), scope="marked") == "b"


def test_a_bound_method_of_one_module():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    model[1].forward = no_fp4(model[1].forward)
    assert rewritten(model) == "0"


def test_a_module_class():
    @no_fp4
    class Inner(nn.Linear):
        pass

    assert rewritten(nn.Sequential(nn.Linear(64, 64), Inner(64, 64))) == "0"
    assert isinstance(Inner(64, 64), nn.Linear)


def test_a_subclass_inherits_the_mark_and_may_change_it():
    @no_fp4
    class Marked(nn.Linear):
        pass

    class Inherits(Marked):
        pass

    @fp4
    class Changes(Marked):
        pass

    model = nn.Sequential(Marked(64, 64), Inherits(64, 64), Changes(64, 64))
    assert rewritten(model) == "2"


@pytest.mark.parametrize("outer, inner, expected", [("fp4", "no_fp4", "ac"), ("no_fp4", "fp4", "b")])
def test_the_inner_block_wins(outer, inner, expected):
    class Model(Base):
        def forward(self, x):
            with MARKS[outer]():
                x = self.a(x)
                with MARKS[inner]():
                    x = self.b(x)
                return self.c(x)

    assert rewritten(Model()) == expected


@pytest.mark.parametrize("outer, inner, expected", [("fp4", "no_fp4", ""), ("no_fp4", "fp4", "0.b")])
def test_the_inner_class_wins(outer, inner, expected):
    inner_class = MARKS[inner](type("Inner", (nn.Linear,), {}))

    @MARKS[outer]
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.b = inner_class(64, 64)

        def forward(self, x):
            return self.b(x)

    assert rewritten(nn.Sequential(Outer())) == expected


@pytest.mark.parametrize("by_class, by_block", [("fp4", "no_fp4"), ("no_fp4", "fp4")])
def test_between_a_class_and_a_block_the_prohibition_wins(by_class, by_block):
    @MARKS[by_class]
    class Model(Base):
        def forward(self, x):
            with MARKS[by_block]():
                return self.b(x)

    assert rewritten(nn.Sequential(Model())) == ""


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_mark_reaches_the_gradients_of_its_region_also_under_checkpointing(checkpointed):
    class Model(Base):
        def region(self, x):
            with no_fp4():
                x = self.b(x)
            return self.c(x).tanh()

        def forward(self, x):
            x = self.a(x)
            return checkpoint(self.region, x, use_reentrant=False) if checkpointed else self.region(x)

    model = Model()
    report = qc.explain(model, X)
    assert decisions(report) == {"a": True, "b": False, "c": True}
    assert report.graphs[0].after.count("ckpt") == report.graphs[0].before.count("ckpt") + 3 * checkpointed
    kept = next(site for site in report.sites if site.name == "b")
    assert kept.gemms == dict.fromkeys(("fprop", "dgrad", "wgrad"), "high precision")
    function, _ = compiled(model, recipe="exact")
    expected, exact = gradients(model, X)
    result, gradient = gradients(model, X, function=function)
    assert relative(result, expected) < 2e-5
    assert max(relative(gradient[name], exact[name]) for name in exact) < 2e-5


def test_fp4_overrides_the_default_rules_and_include():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.lm_head = nn.Linear(64, 64), nn.Linear(64, 64)

        def forward(self, x):
            with fp4():
                return self.lm_head(self.body(x))

    assert decisions(qc.explain(Model(), X)) == {"body": True, "lm_head": True}
    assert decisions(qc.explain(Model(), X, include=["body"])) == {"body": True, "lm_head": True}
    assert reasons(qc.explain(Model(), X))["lm_head"] == "marked fp4"


def test_exclude_and_what_is_possible_win_over_fp4():
    class Model(Base):
        def __init__(self):
            super().__init__()
            self.small = nn.Linear(64, 16)

        @fp4
        def forward(self, x):
            return self.small(self.b(self.a(x)))

    report = qc.explain(Model(), X, exclude=["a"])
    assert decisions(report) == {"a": False, "b": True, "small": False}
    assert reasons(report)["small"] == "N is 16, below the group of 32"


def test_include_does_not_override_no_fp4():
    class Model(Base):
        @no_fp4
        def forward(self, x):
            return self.a(x)

    assert rewritten(Model(), include=["*"]) == ""


def test_a_mark_around_the_call_of_a_compiled_model_does_nothing():
    class Model(Base):
        def forward(self, x):
            return self.b(self.a(x))

    function, backend = compiled(Model())
    with no_fp4():
        function(X).sum().backward()
    assert [site.rewritten for site in sites(backend)] == [True, True]


def test_a_function_that_is_marked_later_is_compiled_again():
    class Model(Base):
        def part(self, x):
            return self.b(x)

        def forward(self, x):
            return self.part(x)

    model = Model()
    function, backend = compiled(model)
    function(X)
    model.part = no_fp4(model.part)
    function(X)
    model.part = fp4(Model.part.__get__(model))
    function(X)
    assert [site.rewritten for site in sites(backend)] == [True, False, True]


def test_a_class_that_is_marked_later_needs_a_reset():
    class Inner(nn.Linear):
        pass

    model = nn.Sequential(Inner(64, 64))
    function, backend = compiled(model)
    function(X)
    no_fp4(Inner)
    torch.compiler.reset()
    function(X)
    assert [site.rewritten for site in sites(backend)] == [True, False]
    assert rewritten(model) == ""


def test_marks_change_nothing_without_compilation():
    class Model(Base):
        @fp4
        def forward(self, x):
            with no_fp4():
                return self.a(x)

    model = Model()
    assert torch.equal(model(X), model.a(X))


@pytest.mark.parametrize(
    "target, described",
    [
        (nn.Linear(64, 64), "a Linear"),
        (3, "a int"),
        (classmethod(print), "a classmethod"),
        (dict, "the class dict, which is no Module"),
    ],
    ids=str,
)
@pytest.mark.parametrize("mark", MARKS)
def test_what_can_not_be_marked(mark, target, described):
    with pytest.raises(qc.OptionError, match=f"quartet_compile.{mark} got {described}; expected a function") as caught:
        MARKS[mark](target)
    assert "include and exclude" in str(caught.value)
