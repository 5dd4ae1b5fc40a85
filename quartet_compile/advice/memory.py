"""What training takes of a GPU's memory: from the model's parameters and the matmuls of a report."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch
from torch import nn

from ..config.recipe import Recipe
from ..report.report import Site

ADAM_BYTES = 8
"""Two float32 moments a parameter."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one GPU. weights, gradients, moments (AdamW's, float32): replicated, as in data parallel.

    operands: what the matmuls save for their backward, in this recipe; operands_before: the same without it. Of matmuls
    that read one tensor (q, k and v) it counts once: those of one module with the same M and K. What else a model saves
    (attention, norms) isn't in it.
    """

    weights: int
    gradients: int
    moments: int
    operands: int
    operands_before: int


def memory_of(modules: Iterable[nn.Module], sites: Iterable[Site], recipe: Recipe) -> Memory:
    """The memory of a training step with this recipe."""
    parameters = {id(parameter): parameter for module in modules for parameter in module.parameters()}.values()
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    operands = operands_before = 0
    seen = set()
    for site in sites:
        m, _, k = site.shape
        reads = (site.name.rpartition(".")[0], m, k)
        if reads in seen or not isinstance(m, int) or not isinstance(k, int) or not _saves(site):
            continue
        seen.add(reads)
        before = m * k * getattr(torch, site.dtype).itemsize
        operands_before += before
        operands += round(m * k * _saved(recipe)) if site.rewritten and recipe.x_from != "original" else before
    gradients = sum(parameter.numel() * parameter.element_size() for parameter in trained)
    return Memory(
        weights=sum(parameter.numel() * parameter.element_size() for parameter in parameters),
        gradients=gradients,
        moments=ADAM_BYTES * sum(parameter.numel() for parameter in trained),
        operands=operands,
        operands_before=operands_before,
    )


def _saves(site: Site) -> bool:
    """Whether its input is saved for the gradient of its weight."""
    return site.gemms.get("wgrad") is not None


def _saved(recipe: Recipe) -> float:
    """Bytes an element of X that is saved as codes, with its share of the scales and a bit of mask."""
    if recipe.fprop is None:
        return 2.0
    return (recipe.fprop.a.bits + recipe.trust_mask) / 8
