"""examples/bench_weight_cache.py times what the weight cache does."""

from __future__ import annotations

import bench_weight_cache
import pytest
import torch

from quartet_compile.kernels import weight_cache


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_timed_is_what_the_cache_does(dtype):
    weight = torch.randn(64, 96).to(dtype)
    ways = bench_weight_cache.work(weight)
    assert bench_weight_cache.best(ways, 2).keys() == ways.keys()
    made = ways["quantize, mxfp4-quest with mask"]()
    copied = ways["copy of codes, scales and mask"]()
    assert all(map(torch.equal, copied, (made.codes, made.scales, made.mask)))
    assert ways["fingerprint of the weight"]() == weight_cache.fingerprint(weight)
