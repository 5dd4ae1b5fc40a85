"""Saved for backward: packed codes, scales and mask bits, and nothing in high precision that only the matmul needed."""

from __future__ import annotations

import torch
from torch import nn

from quartet_compile._compat import graph_nodes, saved_tensors
from quartet_compile.capture.capture import Capture
from quartet_compile.config.options import configure


def saved(model, x, **options):
    torch._dynamo.reset()
    y = torch.compile(model, backend=Capture(configure(options), text=False))(x)
    tensors = {t.data_ptr(): t for node in graph_nodes(y.grad_fn) for t in saved_tensors(node) if t.numel()}
    return list(tensors.values())


def test_only_packed_operands_are_saved():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256))
    x = torch.randn(128, 256, requires_grad=True)
    tensors = saved(model, x)
    assert {t.dtype for t in tensors} == {torch.uint8, torch.bool}
    packed = sum(t.nbytes for t in tensors if t.dtype == torch.uint8)
    operands = x.numel() + 128 * 512 + 2 * 256 * 512
    assert packed == operands * (16 + 1 + 4) // 32
    assert packed / operands < 0.7


def test_nothing_is_saved_of_a_frozen_weights_input():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 512, bias=False))
    model.requires_grad_(False)
    x = torch.randn(128, 256, requires_grad=True)
    shapes = sorted(tuple(t.shape) for t in saved(model, x))
    assert shapes == [(128, 32), (512, 8), (512, 128)], "the mask of x; scales and codes of w"


def test_the_untouched_model_saves_high_precision():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256)), torch.randn(128, 256)
    assert torch.float32 in {t.dtype for t in saved(model, x, recipe="bf16")}
