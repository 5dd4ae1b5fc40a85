"""What products make of an operand they share is made once: q, k and v read one X."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from quartet_compile._compat.fake_gpu import code_only, scratch_folder
from quartet_compile.capture.call import call_of
from quartet_compile.capture.capture import run_on_fakes
from quartet_compile.cross.backend import CrossBackend
from quartet_compile.cross.traffic import marker
from quartet_compile.machines.targets import find_target


class Heads(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, 160, bias=False) for _ in range(3))

    def forward(self, x):
        return self.q(x), self.k(x), self.v(x)


def stored(target: str, recipe: str, width: int) -> Counter[str]:
    """How many buffers the kernels of each op write in the forward pass; Inductor's own are `""`, which it may fuse."""
    x = torch.zeros(256, width, dtype=torch.bfloat16)
    call, config = call_of(Heads(width).bfloat16(), (x,), None, {"recipe": recipe})
    backend = CrossBackend(config, find_target(target), call.parameter_names())
    with scratch_folder() as folder, code_only(folder, backend.on_joint_graph), torch.no_grad():
        run_on_fakes(call, backend)
    found: Counter[str] = Counter()
    for source in (launch.source for module in backend.modules for launch in module.launches if launch.source):
        ours = marker(source)
        found[ours[0] if ours else ""] += 1 if ours else source.count("tl.store(")
    return found


CASES = {
    "FP8 values": ("sm_90", "quartet", 96, "decode_fp8", 4),
    "bf16 values; reductions to 4 tensor scales; 3 products times both": ("sm_90", "nvfp4", 96, "", 4 + 4 + 3),
    "scales in the order of tensor memory: no kernel writes part of a block": ("sm_100", "quartet", 96, "", 4),
    "scales that come in that order with the operand": ("sm_100", "quartet", 128, "", 0),
}
"""What the forward pass makes of X and of three W."""


@pytest.mark.parametrize("target, recipe, width, op, count", CASES.values(), ids=CASES)
def test_three_products_of_one_x_have_four_operands(target, recipe, width, op, count):
    pytest.importorskip("triton")
    found = stored(target, recipe, width)
    assert found[op] == count, found
