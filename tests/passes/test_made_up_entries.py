"""An entry that is added to a table of the passes, and for which they have no code, leaves its matmuls as they were, with a
reason that names it; under `strict` it is an error. The backends' tables: tests/kernels/test_closed_worlds.py."""

from __future__ import annotations

import dataclasses

import pytest
from hand_built import Joint, aten, two_linears

import quartet_compile as qc
from quartet_compile.config import recipe as recipes
from quartet_compile.errors import StrictError
from quartet_compile.passes import PIPELINE, pipeline, products
from quartet_compile.passes.products.kind import Kind


class Outer(type(products.PLAIN)):
    """A kind of product that is found as a plain one is, and has no form."""

    form = Kind.form


def an_outer_product(monkeypatch, **options):
    """The work of a graph whose one product is of the made-up kind."""
    made_up = Outer()
    monkeypatch.setattr(products, "KINDS", (*products.KINDS, made_up))
    monkeypatch.setitem(products._BY_OP, aten.mm.default, made_up)
    joint = Joint()
    x, w = joint.input("primals_0", 64, 64), joint.parameter("first", 64, 64)
    return joint.work(joint.linear(x, w), **options)


def from_elsewhere(monkeypatch, **options):
    """The work of two linears whose recipe makes W^T of a source that no pass knows."""
    monkeypatch.setattr(recipes, "SOURCES", (*recipes.SOURCES, "elsewhere"))
    recipe = dataclasses.replace(qc.recipe("quartet"), name="made up", w_from="elsewhere")
    return two_linears(recipe=recipe, **options)


MADE_UP = {
    "a kind of product": (an_outer_product, "Outer has no form"),
    "a source of operands": (from_elsewhere, "no pass makes an operand of 'elsewhere', an entry of SOURCES"),
}


@pytest.mark.parametrize("table", MADE_UP)
def test_a_made_up_entry_is_refused(monkeypatch, table):
    make, message = MADE_UP[table]
    work = make(monkeypatch)
    before = [(node.target, node.args) for node in work.graph.nodes]
    with pytest.warns(UserWarning, match=message):
        pipeline.run(PIPELINE, work)
    assert work.decisions and not work.chosen
    assert all(message in decision.reason for decision in work.decisions)
    assert [(node.target, node.args) for node in work.graph.nodes] == before


@pytest.mark.parametrize("table", MADE_UP)
def test_a_made_up_entry_is_an_error_under_strict(monkeypatch, table):
    make, message = MADE_UP[table]
    with pytest.raises(StrictError, match=message):
        pipeline.run(PIPELINE, make(monkeypatch, strict=True))
