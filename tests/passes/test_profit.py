"""`policy="profitable"`: what is kept since it is predicted not to pay; and that `advise` predicts the same."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import quartet_compile as qc
from quartet_compile.advice.times import rows_of
from quartet_compile.machines.targets import find_target, known_chip
from quartet_compile.passes.profit import INSTRUCTIONS


def mlp(width=2048, device="meta", dtype=torch.bfloat16):
    with torch.device(device):
        layers = [nn.Linear(512, width, bias=False), nn.GELU(), nn.Linear(width, 4096, bias=False)]
        return nn.Sequential(*layers).to(dtype)


def runs(rows, **options):
    model = mlp()
    report = qc.explain(model, torch.empty(rows, 512, device="meta", dtype=torch.bfloat16), **options)
    return [(site.rewritten, site.reason) for site in report.sites]


def test_what_does_not_pay_is_kept_and_the_report_gives_both_figures():
    small, large = runs(32768, policy="profitable:b200")
    assert small[0] is False and small[1].startswith("does not pay, predicted on B200: ")
    assert large[0] is True and large[1].startswith("pays, predicted on B200: ")
    assert " us, in bfloat16 " in large[1] and large[1].endswith(" us, forward and backward")


def test_it_depends_on_the_chip_and_on_the_tokens_and_is_off_by_default():
    assert [done for done, _ in runs(1024, policy="profitable:b200")] == [False, False]
    assert [done for done, _ in runs(1024, policy="profitable:rtx5090")] == [True, True]
    assert [done for done, _ in runs(32768, policy="profitable:a100")] == [False, False]
    assert runs(1024) == runs(1024, policy="all") == [(True, "matmul with a parameter")] * 2


def test_what_the_user_names_wins():
    assert runs(1024, policy="profitable:b200", include=["2"]) == [(False, "not in include"), (True, "included by '2'")]


def test_what_has_no_prediction_is_rewritten_and_says_so():
    (_, reason), _ = runs(1024, policy="profitable:b200", recipe="tetrajet2")
    assert reason.endswith("have no prediction on B200, so whether it pays isn't known")


def test_the_graph_has_only_what_pays():
    model = mlp(device="cpu", dtype=torch.float32)
    given = torch.randn(64, 512)
    report = qc.explain(model, given, policy="profitable:sm_120")
    assert [site.rewritten for site in report.sites] == [False, True] and "in float32 " in report.sites[0].reason
    assert "2.weight.q" in report.graph_diff() and "0.weight.q" not in report.graph_diff()


@pytest.mark.parametrize(
    "given, message",
    [
        ("profit", "Option 'policy' is 'profit'.*expected 'all', or 'profitable'"),
        ("profitable:", "Option 'policy' is 'profitable:' .*; expected 'all'"),
        ("profitable:b2000", "Unknown target 'b2000' .did you mean 'b200'"),
        ("profitable:mi355x", "no times are predicted on mi355x; leave the option out"),
        (None, "Option 'policy' is None; expected"),
        (
            "profitable",
            "needs the rates of the GPU that the model is on, and the device 'cpu' is none .*profitable:b200",
        ),
    ],
)
def test_what_is_asked_wrongly(given, message):
    with pytest.raises(qc.OptionError, match=message):
        qc.explain(mlp(device="cpu"), torch.randn(32, 512, dtype=torch.bfloat16), policy=given)


@pytest.mark.parametrize(
    "capability, name, chip",
    [
        ((9, 0), "NVIDIA H100 80GB HBM3", "H100 SXM"),
        ((9, 0), "NVIDIA H200", "H200 SXM"),
        ((10, 0), "NVIDIA B200", "B200"),
        ((9, 0), "NVIDIA GH200 480GB", "H100 SXM"),
        ((7, 5), "Tesla T4", None),
    ],
)
def test_the_chip_that_is_here(capability, name, chip):
    found = known_chip(capability, name)
    assert (found and found.chip) == chip


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_100", "sm_120", "sm_90"])
@pytest.mark.parametrize("recipe", ["quartet"])
def test_it_predicts_what_advise_does_of_compiled_kernels(target, recipe):
    """Within a third: the table of instructions has each op once, and what Inductor fuses is not in it."""
    pytest.importorskip("triton")
    model = nn.Linear(1024, 4096, bias=False, dtype=torch.bfloat16)
    x = torch.randn(4096, 1024, dtype=torch.bfloat16, requires_grad=True)
    artifact = qc.cross_compile(model, x, target=target, recipe=recipe)
    (row,) = rows_of(artifact)
    site = qc.explain(model, x, recipe=recipe, policy=f"profitable:{target}").sites[0]
    ours, before = (float(part.split(" us")[0].split()[-1]) for part in site.reason.split(": ")[1].split(", in "))
    assert before == pytest.approx(1e6 * row.bf16_seconds, rel=0.1)
    assert ours == pytest.approx(1e6 * row.seconds.realistic, rel=1 / 3)


def test_the_table_has_known_formats_and_chips():
    for chips in INSTRUCTIONS.values():
        assert all(find_target(f"sm_{chip}") for chip in chips)
        assert all(value > 0 for each in chips.values() for value in dataclasses.astuple(each))
