"""Equal matmuls of equal layers are one line; what differs in anything but a number of its name isn't."""

from __future__ import annotations

import dataclasses

import pytest

from quartet_compile.report.fold import folded
from quartet_compile.report.report import GraphReport, Report, Site

GEMMS = {"fprop": "mxfp4-quest", "dgrad": "mxfp4-sr", "wgrad": "mxfp4-sr"}
KEPT = dict.fromkeys(GEMMS, "high precision")


def site(name, **fields):
    given = dict(shape=(32, 64, 64), dtype="float32", rewritten=True, reason="matmul with a parameter", gemms=GEMMS)
    return Site(name=name, **{"recipe": "quartet", "runs_in": "fp4", **given, **fields})


def names(*sites):
    return [each.name for each in folded(sites)]


@pytest.mark.parametrize(
    "given, expected",
    [
        (["layers.0.up", "layers.0.down", "layers.1.up", "layers.1.down"],
         ["layers.0-1.up (x2)", "layers.0-1.down (x2)"]),
        (["layers.0.up", "layers.2.up", "layers.3.up", "layers.7.up"], ["layers.0,2-3,7.up (x4)"]),
        ([f"layers.{i}.experts.{j}.up" for i in range(3) for j in range(4)], ["layers.0-2.experts.0-3.up (x12)"]),
        (["layers.0.experts.0.up", "layers.0.experts.1.up", "layers.1.experts.0.up"],
         ["layers.0.experts.0-1.up (x2)", "layers.1.experts.0.up"]),
        (["up", "up"], ["up (x2)"]),
        (["layers.0.up", "layers.0.up", "layers.1.up", "layers.1.up"], ["layers.0-1.up (x4)"]),
        (["layers.0.up", "layers.0.up", "layers.1.up"], ["layers.0.up (x2)", "layers.1.up"]),
        (["model.py:12", "a.b"], ["model.py:12", "a.b"]),
        ([], []),
    ],
)  # fmt: skip
def test_names(given, expected):
    assert names(*map(site, given)) == expected


@pytest.mark.parametrize(
    "change",
    [{"shape": (32, 96, 64)}, {"reason": "excluded"}, {"runs_in": "mxfp8"}, {"rewritten": False}],
)
def test_what_differs_in_anything_else_is_a_line_of_its_own(change):
    sites = [site("layers.0.up"), dataclasses.replace(site("layers.1.up"), **change), site("layers.2.up")]
    assert names(*sites) == ["layers.0,2.up (x2)", "layers.1.up"]


def test_every_site_is_in_one_fold():
    sites = [site(f"layers.{i}.{name}") for i in range(40) for name in ("q", "k", "v", "o", "up", "gate", "down")]
    found = folded([*sites, site("lm_head")])
    assert len(found) == 8 and sorted(s.name for each in found for s in each.sites) == sorted(
        s.name for s in [*sites, site("lm_head")]
    )


def test_the_summary_comes_first_with_the_share_of_each_rule():
    head = site("lm_head", shape=(32, 64, 6400), rewritten=False, reason="output head", gemms=KEPT, runs_in="")
    sites = (*(site(f"layers.{i}.up") for i in range(100)), head)
    lines = str(Report(recipe="quartet", graphs=(GraphReport(sites=sites, training=True),))).splitlines()
    assert lines[:4] == [
        "100 of 101 matmuls (50 % of FLOPs outside attention) in FP4, in 1 graph (recipe 'quartet').",
        "Rules, and how many matmuls and what share of these FLOPs each decided:",
        "  100    50 %  matmul with a parameter",
        "    1    50 %  output head",
    ]
    assert [line.split()[0] for line in lines[7:9]] == ["layers.0-99.up", "lm_head"]
