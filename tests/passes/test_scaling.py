"""Layers share kernels: the distinct ones are as many at 16 layers as at 2, and so are their constant arguments."""

from __future__ import annotations

from bench_compile import growth


def test_distinct_kernels_do_not_grow_with_the_layers():
    _, few_sites, few = growth(2)
    _, many_sites, many = growth(16)
    assert many_sites == 8 * few_sites
    assert many == few <= 10
