"""The lines of the report: what became of each product of a graph, in the user's terms."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from ..config.recipe import Gemm, Recipe, operands
from ..report.report import Site
from .graph import module_of
from .products.groups import Groups
from .saved import Saved
from .site import Decision, MatmulSite, OtherProduct, quantized
from .work import Work

_FORMATS = {"e2m1": "fp4", "e4m3": "fp8", "float32": "fp4"}
"""What the report calls the formats of elements. Those that round nothing stand for FP4, in tests of the rewriting."""


def describe(work: Work, order: dict[fx.Node, int]) -> tuple[Site, ...]:
    """Every product of a graph, in the order of its nodes."""
    names = work.weights.names
    described = {decision.site.node: [_decided(decision, work.saved, names)] for decision in work.decisions}
    for other in work.others:
        if other.node not in described or other.inside:
            line = _never(other, work.inputs.parameters)
            described.setdefault(other.inside or other.node, []).append(line)
    return tuple(site for node in sorted(described, key=order.__getitem__) for site in described[node])


def _decided(decision: Decision, saved: dict[int, Saved], names: Mapping[fx.Node, str]) -> Site:
    site = decision.site
    present = {"fprop": site.node, "dgrad": site.dgrad, "wgrad": site.wgrad}
    gemms = {}
    for role, node in present.items():
        gemm = getattr(decision.recipe, role) if decision.rewrite else None
        gemms[role] = None if node is None else operands(gemm)
    return Site(
        name=decision.name,
        shape=_sizes(site.shape),
        dtype=_dtype(site.node),
        rewritten=decision.rewrite,
        reason=decision.reason,
        gemms=gemms,
        recipe=decision.recipe.name if decision.rewrite else "",
        runs_in=_runs_in(site, decision.recipe) if decision.rewrite else _dtype(site.node),
        grouped=decision.rewrite and isinstance(saved[site.index].form, Groups),
        weight=names[site.read.parameter] if site.read else "",
        outputs="some " * site.read.part + site.read.outputs if site.read else "",
    )


def _never(other: OtherProduct, parameters: dict[fx.Node, str]) -> Site:
    parameter = parameters.get(other.weight, "")
    return Site(
        name=module_of(other.node) or parameter.removesuffix(".weight") or other.kind,
        shape=_sizes(other.shape),
        dtype=_dtype(other.node),
        rewritten=False,
        reason=other.reason,
        gemms={"fprop": operands(None)},
        runs_in=_dtype(other.node),
    )


def _runs_in(site: MatmulSite, recipe: Recipe) -> str:
    """`fp4`; if not all GEMMs of a site are, with their roles; if they differ, each format with its roles."""
    formats: dict[str, list[str]] = {}
    for role in quantized(site, recipe):
        gemm = getattr(recipe, role)
        formats.setdefault(_format(gemm), []).append(role)
    if len(formats) == 1 and len(quantized(site, recipe)) == 1 + len(site.backward):
        return next(iter(formats))
    return " + ".join(f"{name} ({', '.join(roles)})" for name, roles in formats.items())


def _format(gemm: Gemm) -> str:
    """`fp4`; `fp4-weights` where only the second operand of a product is rounded, and so on."""
    a, b = (_FORMATS[quantizer.elements] for quantizer in (gemm.a, gemm.b))
    if gemm.a.exact and not gemm.b.exact:
        return f"{b}-weights"
    return a if gemm.b.exact is gemm.a.exact else f"{a}-activations"


def _sizes(shape: tuple) -> tuple:
    return tuple(size if isinstance(size, int) else str(size) for size in shape)


def _dtype(node: fx.Node) -> str:
    value = node.meta["val"]
    value = value[0] if isinstance(value, (tuple, list)) else value
    return str(value.dtype).removeprefix("torch.")
