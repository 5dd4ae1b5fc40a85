"""Each row of the spec sees the mistake that it is there for, made by hand in a rewritten graph, and names it."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from hand_built import aten, rewrite, rewritten, two_linears
from models import Attention, Net
from torch import nn

import quartet_compile as qc
from quartet_compile.kernels.numerics import philox
from quartet_compile.kernels.schemas import arguments_of, epilogue_of, op_of
from quartet_compile.passes.graph import VerifyError
from quartet_compile.passes.rewritten import products
from quartet_compile.passes.share import quartet
from quartet_compile.passes.spec import AT_THE_END, SPEC
from quartet_compile.passes.verify import verify

X = torch.randn(2, 16, 64)


def change(node, **arguments):
    """Other arguments for a node that calls an op of ours."""
    node.args, node.kwargs = tuple(arguments_of(node)._replace(**arguments)), {}


def product(work, name, role):
    """The product of a site, by the site's name."""
    (site,) = (decision.site for decision in work.decisions if decision.name == name)
    return next(p for p in products(work.build, site, work.recipes[site.index]) if p.role == role)


def made(work, name, role, side):
    """What quantizes an operand of a product."""
    return product(work, name, role).operands[side].made


def a_node_from_elsewhere(work):
    node = product(work, "first", "fprop").node
    with work.graph.inserting_after(node):
        work.graph.call_function(aten.neg.default, (node,))


def no_value(work):
    del product(work, "first", "fprop").node.meta["val"]


def no_tag(work):
    del made(work, "first", "dgrad", 1).meta["partitioner_tag"]


def no_number(work):
    del made(work, "first", "dgrad", 1).meta["seq_nr"]


def a_replaced_product_is_read(work):
    old = work.sites[0].node
    new = work.build.replaced[old]
    next(iter(new.users)).replace_input_with(new, old)


def a_product_for_nothing(work):
    node = product(work, "first", "dgrad").node
    with work.graph.inserting_after(node):
        other = work.build.call(work.sites[0].node, quartet.scaled_mm.default, *node.args)
    work.build.made[work.sites[0].node, quartet.scaled_mm.default] = product(work, "first", "wgrad").node
    assert other.users == {}


def scales_of_another(work):
    call = product(work, "first", "dgrad").call
    change(product(work, "first", "dgrad").node, a_scales=call.b_scales)


def codes_another_way_than_scales(work):
    found = product(work, "first", "fprop")
    with work.graph.inserting_before(found.node):
        change(found.node, a=work.build.call(found.node, aten.clone.default, found.call.a))


def another_alpha(work):
    change(product(work, "first", "dgrad").node, alpha=1.0)


def another_quantizer(work):
    change(made(work, "first", "dgrad", 1), quantizer="mxfp4-rtn")


def codes_of_another_quantizer(work):
    change(made(work, "first", "wgrad", 1), source="mxfp4-sr")


def another_format(work):
    change(product(work, "first", "fprop").node, a_format="nvfp4")


def another_contraction(work):
    other = product(work, "second", "fprop").call
    node = product(work, "first", "fprop").node
    change(node, b=other.b, b_scales=other.b_scales, b_tensor_scale=other.b_tensor_scale)


def no_seed(work):
    change(made(work, "first", "dgrad", 1), seed=None)


def a_seed_that_may_be_saved(work):
    arguments_of(made(work, "first", "dgrad", 1)).seed.meta["partitioner_tag"] = "is_forward"


def other_signs(work):
    change(made(work, "first", "dgrad", 1), sign_seed=arguments_of(made(work, "second", "dgrad", 1)).seed)


def the_stream_of_the_other_side(work):
    change(made(work, "first", "dgrad", 1), stream=philox.DGRAD_DY)


def noise_of_another_matmul(work):
    seed = arguments_of(made(work, "first", "dgrad", 1)).seed
    for side in (0, 1):
        node = made(work, "second", "dgrad", side)
        change(node, seed=seed, **({"sign_seed": seed} if side else {}))


def another_rotation(work):
    change(product(work, "first", "dgrad").result, rotation=64)


def the_mask_of_the_other(work):
    change(product(work, "first", "dgrad").result, mask=arguments_of(product(work, "first", "wgrad").result).mask)


def padding_left(work):
    change(product(work, "first", "dgrad").result, columns=96)


def still_rotated(work):
    change(product(work, "first", "dgrad").node, mask=None, rotation=0, columns=None)


def random_results_that_are_kept(work):
    found = product(work, "first", "dgrad").operands[1]
    change(found.made, cached_for=arguments_of(found.source.made).x)


def an_activation_that_is_kept(work):
    change(made(work, "second", "fprop", 0), cached_as=torch.float32)


def kept_beside_another_weight(work):
    """Of a graph with the cache, whose recipe transposes codes."""
    change(made(work, "first", "dgrad", 1), cached_for=arguments_of(made(work, "second", "fprop", 1)).x)


SEEN = {
    a_node_from_elsewhere: ("builder", ""),
    no_value: ("value", "first"),
    no_tag: ("place", "first"),
    no_number: ("place", "first"),
    a_replaced_product_is_read: ("replaced", "first"),
    a_product_for_nothing: ("role", "first"),
    scales_of_another: ("parts", "first"),
    codes_another_way_than_scales: ("wire", "first"),
    another_alpha: ("recipe", "first"),
    another_quantizer: ("recipe", "first"),
    codes_of_another_quantizer: ("recipe", "first"),
    another_format: ("format", "first"),
    another_contraction: ("contraction", "first"),
    no_seed: ("seed", "first"),
    a_seed_that_may_be_saved: ("forward seed", "first"),
    other_signs: ("signs", "first"),
    the_stream_of_the_other_side: ("stream", "first"),
    noise_of_another_matmul: ("noise", ""),
    another_rotation: ("unrotate", "first"),
    the_mask_of_the_other: ("unrotate", "first"),
    padding_left: ("unrotate", "first"),
    still_rotated: ("unrotate", "first"),
    random_results_that_are_kept: ("kept", "first"),
    an_activation_that_is_kept: ("kept", "second"),
}


def read_before_it_is_there(work):
    node = product(work, "first", "fprop").node
    next(iter(node.users)).append(node)


def a_gradient_in_forward(work):
    product(work, "first", "dgrad").result.meta["partitioner_tag"] = "is_forward"


def an_operand_that_nobody_reads(work):
    node = made(work, "first", "dgrad", 1)
    with work.graph.inserting_before(work.sites[0].dgrad):
        work.build.outputs(work.build.call(work.sites[0].dgrad, node.target, *node.args))


SEEN_AT_THE_END = {
    read_before_it_is_there: ("order", "first"),
    a_gradient_in_forward: ("gradient", "first"),
    an_operand_that_nobody_reads: ("read", ""),
}


def seen(work, finished, row, site):
    rule = next(rule for rule in (*SPEC, *AT_THE_END) if rule.name == row)
    where = f"of the site {site!r}: .*" if site else ""
    with pytest.raises(VerifyError, match=where + re.escape(f"; row {row!r}: {rule.sentence}")) as error:
        verify(work, finished)
    return error.value.node


@pytest.mark.parametrize("mistake", SEEN, ids=lambda mistake: mistake.__name__)
def test_a_mistake_is_seen(mistake):
    work = rewrite(two_linears())
    verify(work)
    mistake(work)
    seen(work, False, *SEEN[mistake])


def test_what_is_kept_beside_another_weight_is_seen():
    work = rewrite(two_linears(recipe="nvfp4", weight_cache=True))
    verify(work)
    kept_beside_another_weight(work)
    seen(work, False, "kept", "first")


@pytest.mark.parametrize("mistake", SEEN_AT_THE_END, ids=lambda mistake: mistake.__name__)
def test_a_mistake_is_seen_at_the_end(mistake):
    work = rewrite(two_linears())
    verify(work, finished=True)
    mistake(work)
    seen(work, True, *SEEN_AT_THE_END[mistake])


def test_a_site_whose_backward_was_forgotten_is_seen():
    seen(rewrite(two_linears(), skip="backward"), True, "nothing left", "first")


def test_every_row_has_its_mistake():
    assert {row.name for row in SPEC} == {name for name, _ in SEEN.values()}
    assert {row.name for row in AT_THE_END} == {name for name, _ in SEEN_AT_THE_END.values()} | {"nothing left"}
    assert len({row.name for row in (*SPEC, *AT_THE_END)}) == len(SPEC) + len(AT_THE_END)


def test_a_product_that_is_cast_before_it_is_unrotated():
    """Its mask and rotation have an op of their own, which the row sees too."""
    quartet_recipe = qc.recipe("quartet")
    dgrad = dataclasses.replace(quartet_recipe.dgrad, output="bfloat16")
    work = rewrite(two_linears(recipe=dataclasses.replace(quartet_recipe, name="cast first", dgrad=dgrad)))
    verify(work, finished=True)
    found = product(work, "first", "dgrad")
    assert epilogue_of(found.call) is None and op_of(found.result) == "unrotate"
    assert epilogue_of(product(work, "first", "wgrad").call) is not None
    found.result.replace_all_uses_with(found.result.args[0])
    seen(work, False, "unrotate", "first")


def swap_signs(work):
    """In a graph that torch traced: W^T of the first dgrad gets the signs of another matmul."""
    first, second = [node for node in work.graph.nodes if op_of(node) == "requantize"][:2]
    change(first, sign_seed=[*arguments_of(second).seed.args[0].users][-1])


def a_shared_operand_of_two_quantizers(work):
    """q, k and v share X: its noise may be drawn once for one quantizer only."""
    call = next(node for node in work.graph.nodes if op_of(node) == "requantize")
    change(call, stream=arguments_of(call).stream ^ 1)


@pytest.mark.parametrize("mistake, row", [(swap_signs, "signs"), (a_shared_operand_of_two_quantizers, "stream")])
def test_a_mistake_in_a_traced_graph(mistake, row):
    work = rewritten(Attention(), X)
    verify(work)
    mistake(work)
    assert seen(work, False, row, "") is not None


QUIET = {
    "checkpointing": (Net(checkpointing=True), X, {}),
    "a recipe that requantizes": (Attention(), X, {"recipe": "quartet2"}),
    "a recipe of originals": (Attention(), X, {"recipe": "mxfp8"}),
    "codes as they are": (Attention(), X, {"recipe": "nvfp4"}),
    "only backward": (Attention(), X, {"recipe": "mxfp4-bwd"}),
    "statistics": (Attention(), X, {"stats": True}),
    "nothing is rounded": (Attention(), X, {"recipe": "exact"}),
    "a convolution": (nn.Conv2d(64, 96, 1), torch.randn(2, 64, 6, 8), {}),
}


@pytest.mark.parametrize("case", QUIET)
def test_what_the_passes_make_is_legal(case):
    model, x, options = QUIET[case]
    work = rewritten(model, x, **options)
    assert work.chosen
    verify(work)
    verify(work, finished=True)
