"""Packed weights in a graph: what the spec sees there, and what counts as the whole of one."""

from __future__ import annotations

import pytest
import torch
from hand_built import rewritten
from torch import nn

import quartet_compile as qc
from quartet_compile.kernels.schemas import arguments_of
from quartet_compile.passes.graph import Values, VerifyError
from quartet_compile.passes.packed import is_packed, whole
from quartet_compile.passes.rewritten import products
from quartet_compile.passes.verify import verify


@pytest.fixture
def work():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).requires_grad_(False)
    return rewritten(qc.pack(model), torch.randn(32, 64, requires_grad=True))


def change(node, **arguments):
    node.args, node.kwargs = tuple(arguments_of(node)._replace(**arguments)), {}


def product(work, site, role):
    return next(each for each in products(work.build, site, work.recipes[site.index]) if each.role == role)


def test_a_graph_with_packed_weights_is_legal(work):
    verify(work)
    names = [decision.name for decision in work.decisions]
    assert names == ["0", "2"] and all(decision.site.packed is not None for decision in work.decisions)


def test_the_spec_sees_scales_of_another_weight(work):
    first, second = work.sites
    change(product(work, first, "fprop").node, b_scales=product(work, second, "fprop").call.b_scales)
    with pytest.raises(VerifyError, match="of the site '0': .*and it reads .*row 'parts'"):
        verify(work)


def test_the_spec_sees_codes_of_another_weight(work):
    first, second = work.sites
    change(product(work, first, "dgrad").operands[1].made, codes=product(work, second, "fprop").call.b)
    with pytest.raises(VerifyError, match="of the site '0': .*and it reads .*row 'parts'"):
        verify(work)


def test_the_whole_of_a_weight(work):
    """As it is, through a cast; not its transpose, nor a part, nor a copy in another order."""
    aten, (site, _) = torch.ops.aten, work.sites
    node = site.packed
    assert is_packed(node)

    def is_whole(op, *args, of=node, **kwargs):
        with work.graph.inserting_after(of):
            made = work.build.call(site.node, op, of, *args, kwargs=kwargs)
        return made, whole(Values(), Values().matrix(made)) is node

    turned, answer = is_whole(aten.permute.default, [1, 0])
    assert not answer and whole(Values(), Values().matrix(turned).t) is node
    assert whole(Values(), Values().matrix(node)) is node and whole(Values(), Values().matrix(node).t) is None
    assert is_whole(torch.ops.prims.convert_element_type.default, torch.bfloat16)[1]
    assert not is_whole(aten.slice.Tensor, 0, 0, 32)[1]
    assert not is_whole(aten.clone.default, of=turned, memory_format=torch.contiguous_format)[1]
