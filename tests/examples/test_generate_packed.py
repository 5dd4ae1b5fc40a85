"""The example that generates with packed weights, and with weights that are quantized once."""

from __future__ import annotations

import generate_packed
import pytest
import torch
from cached_weights import counted

import quartet_compile as qc

WEIGHTS = 14
"""Of the two layers of the smallest model; its head isn't in FP4."""


@pytest.mark.parametrize(
    "cache", ["none", *(pytest.param(cache, marks=pytest.mark.slow) for cache in ("static", "dynamic"))]
)
def test_the_same_text_however_the_weights_are_kept(cache, graphs, monkeypatch):
    """`measure` compares the texts. A cache of keys and values gives two graphs or three, each with shapes of its own."""
    made = generate_packed.ways

    def ways(model):
        found = made(model)
        del found[generate_packed.PLAIN]
        return found

    monkeypatch.setattr(generate_packed, "ways", ways)
    with torch._dynamo.config.patch(recompile_limit=32):
        rates = generate_packed.measure("test", window=3, tokens=4, turns=1, cache=cache)
    assert len(rates) == 3 and all(rate > 0 for rate in rates.values())


@pytest.mark.parametrize("cache", generate_packed.CACHES)
def test_weights_are_quantized_once(cache, graphs):
    """By the forward of the prompt; those of single tokens, of whatever length so far, find them."""
    model = generate_packed.model_of("test", cache, 8).eval().requires_grad_(False)
    model.compile(backend="quartet", options={"weight_cache": True})
    with torch.no_grad(), counted() as shapes:
        generate_packed.generate(model, 3, 4, cache)
    assert len(shapes) == WEIGHTS
    assert sum(site.rewritten for site in graphs[0].sites) == WEIGHTS


@pytest.mark.parametrize("way", [lambda model: torch.compile(model, backend="quartet"), qc.quartet])
def test_what_is_around_a_model_hands_generate_on_to_it(way):
    """So nothing is quantized: docs/packed.md says to compile in place."""
    model = generate_packed.model_of("test", "static", 8).eval()
    with torch.no_grad(), counted() as shapes:
        generate_packed.generate(way(model), 3, 2, "static")
    assert shapes == []
