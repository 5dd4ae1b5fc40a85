"""The example that generates with packed weights."""

from __future__ import annotations

import copy

import generate_packed
from captured import compiled

import quartet_compile as qc


def test_the_same_text_with_packed_weights(monkeypatch):
    """`measure` compares the texts."""

    def ways(model):
        return {
            "FP4, weights quantized by each forward": compiled(copy.deepcopy(model))[0],
            "FP4, weights packed": compiled(qc.pack(copy.deepcopy(model)))[0],
        }

    monkeypatch.setattr(generate_packed, "ways", ways)
    rates = generate_packed.measure("test", window=1, tokens=3, turns=1)
    assert len(rates) == 2 and all(rate > 0 for rate in rates.values())
