"""What products make of an operand they share is made once: q, k and v read one X."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from quartet_compile.capture.call import call_of
from quartet_compile.capture.capture import run_on_fakes
from quartet_compile.cross.backend import CrossBackend
from quartet_compile.cross.fake_gpu import code_only, scratch_folder
from quartet_compile.cross.targets import find_target
from quartet_compile.cross.traffic import marker

WIDTH = 96
"""Three groups a row: no quantize kernel writes scales in the order of tensor memory then, so that products copy them."""


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, 160, bias=False) for _ in range(3))

    def forward(self, x):
        return self.q(x), self.k(x), self.v(x)


def launches(target: str, recipe: str) -> Counter[str]:
    """How many kernels of each op the forward pass launches; Inductor's own are `""`."""
    x = torch.zeros(256, WIDTH, dtype=torch.bfloat16)
    call, config = call_of(Heads().bfloat16(), (x,), None, {"recipe": recipe})
    backend = CrossBackend(config, find_target(target), call.parameter_names())
    with scratch_folder() as folder, code_only(folder, backend.on_joint_graph), torch.no_grad():
        run_on_fakes(call, backend)
    sources = [launch.source for module in backend.modules for launch in module.launches if launch.source]
    return Counter((marker(source) or ("",))[0] for source in sources)


@pytest.mark.parametrize(
    "target, recipe, op",
    [("sm_90", "quartet", "decode_fp8"), ("sm_90", "nvfp4", ""), ("sm_100", "quartet", "")],
    ids=["FP8 values", "bf16 values", "scales as tensor memory takes them"],
)
def test_three_products_of_one_x_make_four_operands(target, recipe, op):
    pytest.importorskip("triton")
    found = launches(target, recipe)
    tensor_scales = 4 if recipe == "nvfp4" else 0  # a reduction of Inductor's own for each
    scaled = 3 if recipe == "nvfp4" else 0  # the product by both tensor scales
    assert found[op] == 4 + tensor_scales + scaled, found
