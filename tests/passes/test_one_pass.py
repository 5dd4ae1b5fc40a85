"""Each pass alone, on joint graphs written by hand."""

from __future__ import annotations

import pytest
from hand_built import Joint, aten, results, rewrite, two_linears
from models import relative

from quartet_compile.config.options import configure
from quartet_compile.kernels.schemas import arguments_of, op_of
from quartet_compile.passes import backward, forward, match, plan
from quartet_compile.passes.graph import descendants, tangents
from quartet_compile.passes.match import AMBIGUOUS, find_sites
from quartet_compile.passes.plan import decide
from quartet_compile.passes.verify import verify


def found(joint: Joint, *returned):
    joint.graph.output(returned)
    return find_sites(joint.graph, joint.weights(), frozenset(descendants(tangents(joint.graph))))


def one_linear(shape=(48, 64, 96)):
    """A joint graph with one product, and its nodes by name."""
    m, k, n = shape
    joint = Joint()
    x, w, dy = joint.input("primals_0", m, k), joint.parameter("fc.weight", n, k), joint.input("tangents_1", m, n)
    y = joint.linear(x, w)
    dx, dw = joint.linear_backward(y, dy, x, w)
    return joint, dict(x=x, w=w, dy=dy, y=y, dx=dx, dw=dw)


def test_find_sites_pairs_a_product_with_both_of_its_gradients():
    joint, n = one_linear()
    (site,) = found(joint, n["y"], n["dx"], n["dw"])
    assert (site.node, site.dgrad, site.wgrad, site.sources) == (n["y"], n["dx"], n["dw"], (n["w"],))
    assert site.shape == (48, 96, 64) and site.problem is None
    assert (site.x.node, site.dy.node) == (n["x"], n["dy"])


def test_find_sites_finds_a_product_without_gradients():
    joint = Joint()
    y = joint.linear(joint.input("primals_0", 48, 64), joint.parameter("w", 96, 64))
    (site,) = found(joint, y)
    assert site.node is y and site.backward == [] and site.problem is None


def test_find_sites_knows_a_gradient_that_is_computed_transposed():
    joint, n = one_linear()
    x, dy = (joint.call(aten.t.default, n[name], tag="is_backward", number=1) for name in ("x", "dy"))
    dw = joint.call(aten.mm.default, x, n["dy"], tag="is_backward", number=1)
    joint.graph.erase_node(n["dw"])
    (site,) = found(joint, n["y"], n["dx"], dw)
    assert site.wgrad is dw and site.wgrad_transposed and not site.dgrad_transposed
    assert dy.users == {}


def test_find_sites_gives_up_where_two_gradients_fit():
    joint, n = one_linear()
    other = joint.input("tangents_2", 48, 96)
    for node in (n["dx"], n["dw"]):
        node.meta["seq_nr"] = 7  # of neither
    again = joint.linear_backward(n["y"], other, n["x"], n["w"])
    for node in again:
        node.meta["seq_nr"] = 8
    (site,) = found(joint, n["y"], n["dx"], n["dw"], *again)
    assert site.backward == [] and site.problem == AMBIGUOUS


def decided(shape=(48, 64, 96), mark=None, **options):
    joint, n = one_linear(shape)
    sites = found(joint, n["y"], n["dx"], n["dw"])
    policy = configure(options).policy
    (decision,) = decide(sites, joint.weights(), {}, {n["y"]: mark}, policy, policy.recipe)
    return decision


DECISIONS = {
    "by default": ({}, "matmul with a parameter"),
    "excluded": ({"exclude": ["fc"]}, "excluded by 'fc'"),
    "marked": ({"mark": "no_fp4"}, "marked no_fp4"),
    "small K": ({"shape": (48, 16, 96)}, "K is 16, below the group of 32"),
    "small N": ({"shape": (48, 64, 8)}, "N is 8, below the group of 32"),
    "few rows": ({"shape": (4, 64, 96)}, "M is 4 in training"),
    "no recipe": ({"recipe": [("other", "quartet")]}, "no rule of the option 'recipe' matches it"),
}


@pytest.mark.parametrize("case", DECISIONS)
def test_decide(case):
    options, reason = DECISIONS[case]
    decision = decided(**options)
    assert decision.name == "fc" and decision.reason.startswith(reason)
    assert decision.rewrite == (case == "by default")


def test_rewrite_forward_replaces_the_forward_product_only():
    work = two_linears()
    for step in (match, plan, forward):
        step.apply(work)
    ops = [op_of(node) for node in work.graph.nodes if op_of(node)]
    assert ops == ["quantize", "quantize", "scaled_mm"] * 2
    assert [site.node for site in work.sites] == [*work.build.replaced]
    assert all(saved.x.mask is not None and saved.w.mask is not None for saved in work.saved.values())


def test_rewrite_backward_reads_the_saved_codes():
    work = two_linears()
    for step in (match, plan, forward, backward):
        step.apply(work)
    again = [arguments_of(node) for node in work.graph.nodes if op_of(node) == "requantize"]
    saved = {side.codes for site in work.saved.values() for side in (site.x, site.w)}
    assert len(again) == 4 and {call.codes for call in again} == saved
    assert {call.source for call in again} == {"mxfp4-quest"} and {call.quantizer for call in again} == {"mxfp4-sr"}


def test_the_passes_keep_what_the_graph_computes():
    expected, actual = results(two_linears()), results(rewrite(two_linears(recipe="exact")))
    assert all(relative(a, b) < 1e-5 for a, b in zip(actual, expected, strict=True))


def test_verify_is_content_with_what_they_make():
    work = rewrite(two_linears(stats=True))
    verify(work)
    verify(work, finished=True)
