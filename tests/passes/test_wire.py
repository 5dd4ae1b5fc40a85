"""Codes over the wire: which gathers send them, and why the others don't; on graphs of one rank, written by hand."""

from __future__ import annotations

import pytest
import torch
from expecttest import assert_expected_inline
from hand_built import aten, gathered_linear, rewrite

import quartet_compile as qc
from quartet_compile.kernels.quantizer import QUANTIZERS
from quartet_compile.passes import PIPELINE
from quartet_compile.passes.pipeline import run
from quartet_compile.passes.rows import way_to
from quartet_compile.passes.show import show


def as_it_is(joint, w):
    return w


def sent(way, part, **options):
    """The work of a graph of one weight after all passes and checks."""
    work = gathered_linear(way, part, wire="quantized", **options)
    run(PIPELINE, work)
    return work


def test_codes_scales_and_mask_are_gathered():
    work = sent(as_it_is, (48, 64))
    assert_expected_inline(
        show(work.graph, {**work.inputs.names}),
        """\
fwd  first.q = quantize[mxfp4-quest, mask](first)
fwd  all_gather_into_tensor: u8[96, 32] = all_gather_into_tensor(first.q.codes, 2, 0)
fwd  all_gather_into_tensor_1: u8[96, 2] = all_gather_into_tensor(first.q.scales, 2, 0)
fwd  all_gather_into_tensor_2: u8[96, 8] = all_gather_into_tensor(first.q.mask, 2, 0)
fwd  wait_tensor: u8[96, 32] = wait_tensor(all_gather_into_tensor)
fwd  wait_tensor_1: u8[96, 2] = wait_tensor(all_gather_into_tensor_1)
fwd  wait_tensor_2: u8[96, 8] = wait_tensor(all_gather_into_tensor_2)
fwd  primals_1.q = quantize[mxfp4-quest, mask](primals_1)
fwd  scaled_mm: f32[48, 96] = scaled_mm(primals_1.q, wait_tensor) -> output[0]
bwd  seed: i64[1] = seed(1)
bwd  tangents_1.q = quantize_pair[mxfp4-sr](tangents_1, seed[0])
bwd  wait_tensor.qt = requantize[mxfp4-sr](wait_tensor.T, seed[0])
bwd  scaled_mm_1: f32[48, 64] = scaled_mm[unrotate](tangents_1.q.rows, wait_tensor.qt, primals_1.q.mask) * 16/9 -> output[1]
bwd  primals_1.qt = requantize[mxfp4-sr](primals_1.q.T, seed[0])
bwd  scaled_mm_2: f32[96, 64] = scaled_mm[unrotate](tangents_1.q.columns, primals_1.qt, wait_tensor_2) * 16/9 -> output[2]
""",
    )


def in_pieces(joint, w):
    """As of parts along the second dimension of [2, 48, 64]."""
    halves = joint.call(aten.split.Tensor, w, 1)
    parts = [joint.item(halves, index) for index in (0, 1)]
    return joint.call(aten.view.default, joint.call(aten.cat.default, parts, 1), [96, 64])


def unpadded(joint, w):
    return joint.call(aten.slice.Tensor, w, 0, 0, 95)


def permuted(joint, w):
    turned = joint.call(aten.clone.default, joint.call(aten.permute.default, w, [1, 0, 2]))
    return joint.call(aten.reshape.default, turned, [96, 64])


SENT = {
    "as it is": (as_it_is, (48, 64)),
    "parts along another dimension": (in_pieces, (1, 48, 64)),
    "padding is cut off": (unpadded, (48, 64)),
    "dimensions are swapped": (permuted, (1, 48, 64)),
    "a width that fills no group": (as_it_is, (48, 70)),
}


@pytest.mark.parametrize("case", SENT)
def test_rows_in_any_order_are_sent_as_codes(case):
    work = sent(*SENT[case])
    (item,) = work.gathered
    assert (item.matmul, item.operand, item.ranks, item.reason) == ("first", "W", 2, "")
    gathers = [node for node in work.graph.nodes if "all_gather" in str(node.target)]
    assert [node.meta["val"].dtype for node in gathers] == 3 * [torch.uint8]
    assert item.bytes_after == sum(node.meta["val"].nbytes for node in gathers)
    assert item.bytes_after < 0.36 * item.bytes_before / 2 or case == "a width that fills no group"


def test_ranks_agree_on_the_largest_magnitude_of_nvfp4():
    """And quantize one row more, of which nothing is sent."""
    work = sent(as_it_is, (48, 72), recipe="quartet2")
    (item,) = work.gathered
    assert not item.reason and item.operand == "W"
    gathers = [node for node in work.graph.nodes if "all_gather" in str(node.target)]
    assert [tuple(node.meta["val"].shape) for node in gathers] == [(96, 40), (96, 5)]
    (reduced,) = (node for node in work.graph.nodes if "all_reduce" in str(node.target))
    assert (
        reduced.args[1:] == ("max", "0")
        and reduced.meta["val"].shape == ()
        and reduced.meta["val"].dtype == torch.float32
    )
    (made,) = (
        node
        for node in work.graph.nodes
        if "quantize.default" in str(node.target) and node.args[0].target is aten.cat.default
    )
    assert made.args[0].meta["val"].shape == (49, 72)


def turned(joint, w):
    return joint.call(aten.t.default, w)


def blocks_of_columns(joint, w):
    return joint.call(aten.view.default, w, [32, 192])


KEPT = {
    "K is gathered": (turned, (48, 64), {}, "K is gathered"),
    "square blocks": (as_it_is, (64, 64), {"recipe": "jetfire-fp4"}, "has blocks of 32 rows"),
    "nothing is rounded": (as_it_is, (48, 64), {"recipe": "exact"}, "rounds nothing"),
    "quantized twice": (as_it_is, (48, 64), {"recipe": "mxfp8"}, "it is quantized in several ways"),
    "backward in high precision": (
        as_it_is,
        (48, 64),
        {"recipe": qc.mix("fprop only", fprop="quartet", dgrad="bf16", wgrad="bf16")},
        "it is read in high precision too, by mm",
    ),
}


@pytest.mark.parametrize("case", KEPT)
def test_what_is_gathered_as_it_is_has_a_reason(case):
    way, part, options, reason = KEPT[case]
    work = sent(way, part, **options)
    assert work.chosen and work.gathered and all(reason in item.reason for item in work.gathered), work.gathered
    assert all(item.bytes_before == item.bytes_after for item in work.gathered)
    gathers = [node for node in work.graph.nodes if "all_gather" in str(node.target)]
    assert [node.meta["val"].dtype for node in gathers] == [torch.float32]


def test_rows_that_are_cut_in_pieces_are_not_followed():
    work = rewrite(gathered_linear(blocks_of_columns, (48, 64), wire="quantized"))
    assert work.chosen and not work.gathered


def test_nothing_is_sent_unless_it_is_asked_for():
    work = rewrite(gathered_linear(as_it_is, (48, 64)))
    assert work.chosen and not work.gathered
    assert way_to(next(node for node in work.graph.nodes if "wait_tensor" in str(node.target)))


ROW_BY_ROW = [
    name
    for name, spec in QUANTIZERS.items()
    if not (spec.seeded or spec.two_level or spec.group_rows > 1 or spec.exact)
]


@pytest.mark.parametrize("name", ROW_BY_ROW)
def test_a_row_is_quantized_alike_by_itself_and_among_others(name):
    x = torch.randn(37, 77, generator=torch.Generator().manual_seed(1)) * torch.logspace(-20, 20, 37)[:, None]
    x[3], x[5, 7] = 0, float("nan")
    whole, *parts = (torch.ops.quartet.quantize(rows, name, False, True, 0, None, None) for rows in (x, *x.split(5)))
    for index in (0, 1, 3):
        joined = torch.cat([part[index].view(torch.uint8) for part in parts])
        assert torch.equal(joined, whole[index].view(torch.uint8))
