"""Convolutions of every geometry as products of unfolded windows: exact under `exact`, forward and backward."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from captured import compiled, sites
from rounding import assert_same_step
from torch import nn

import quartet_compile as qc
from quartet_compile.capture.capture import Capture
from quartet_compile.config.options import configure

FUNCTIONS = {
    False: {1: F.conv1d, 2: F.conv2d, 3: F.conv3d},
    True: {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d},
}


class Convolutions(nn.Module):
    """Convolutions of parts of one vector; each is `(transposed, rank, shape of its input, options)`."""

    def __init__(self, *cases, channels=33, filters=40):
        super().__init__()
        self.cases = cases
        self.w, self.b = nn.ParameterList(), nn.ParameterList()
        for transposed, _, _, kernel, options in cases:
            pair = (channels, filters) if transposed else (filters, channels)
            self.w.append(nn.Parameter(torch.randn(*pair, *kernel) / 8))
            self.b.append(nn.Parameter(torch.randn(filters)) if options.pop("bias") else None)

    def forward(self, x):
        outputs = []
        for (transposed, rank, shape, _, options), w, b in zip(self.cases, self.w, self.b, strict=True):
            image = x[: torch.Size(shape).numel()].view(shape)
            outputs.append(FUNCTIONS[transposed][rank](image, w, b, **options).flatten())
        return torch.cat(outputs)


def _cases(rng, transposed, rank, count=3, batch=2, channels=33):
    for number in range(count):
        size = [rng.randint(5, 8 if rank == 3 else 11) for _ in range(rank)]
        kernel = [rng.randint(1, 3) for _ in range(rank)]
        stride = [rng.randint(1, 4) for _ in range(rank)]
        dilation = [rng.randint(1, 2) for _ in range(rank)]
        padding = [rng.randint(0, (k - 1) * d // 2) for k, d in zip(kernel, dilation, strict=True)]
        options = dict(stride=stride, padding=padding, dilation=dilation, bias=number % 2 == 0)
        if transposed:
            options["output_padding"] = [rng.randint(0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True)]
        yield transposed, rank, (batch, channels, *size), kernel, options


def assert_exact(model, x, count, **options):
    function, backend = compiled(model, recipe="exact", include=["*"], **options)
    assert_same_step(model, x, function)
    assert [site.rewritten for site in sites(backend)] == [True] * count


@pytest.mark.parametrize("needs_dx", [pytest.param(False, marks=pytest.mark.slow), True], ids=["", "dx"])
@pytest.mark.parametrize("rank", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("transposed", [False, True], ids=["convolution", "transposed"])
def test_random_geometries(transposed, rank, needs_dx):
    torch.manual_seed(0)
    cases = list(_cases(random.Random(10 * rank + transposed), transposed, rank))
    x = torch.randn(max(torch.Size(shape).numel() for _, _, shape, _, _ in cases), requires_grad=needs_dx)
    assert_exact(Convolutions(*cases), x, len(cases))


@pytest.mark.parametrize("transposed", [False, True], ids=["convolution", "transposed"])
def test_overlapping_windows_pay_from_512_filters_on(transposed):
    """Filters of a convolution, input channels of a transposed one."""
    found = {}
    for count in (511, 512):
        make = nn.ConvTranspose1d if transposed else nn.Conv1d
        model = make(count, 32, 3) if transposed else make(32, count, 3)
        report = qc.explain(model, torch.randn(2, model.in_channels, 20))
        (found[count],) = report.sites
    assert found[512].rewritten and not found[511].rewritten
    assert "pays from 512" in found[511].reason and "it has 511; include=['*']" in found[511].reason
    assert found[511].shape == ((40, 96, 511) if transposed else (36, 511, 96))


def test_kept_convolutions_have_the_sizes_of_one_group():
    (site,) = qc.explain(nn.Conv2d(64, 128, 3, groups=2), torch.randn(2, 64, 8, 8)).sites
    assert not site.rewritten and site.shape == (72, 64, 288)
    assert site.reason.startswith("a convolution in 2 groups")


def test_channels_last_and_frozen_filters():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(32, 40, 3, padding="same"), nn.ReLU(), nn.ConvTranspose2d(40, 32, 2, stride=2))
    model[0].weight.requires_grad_(False)
    x = torch.randn(2, 32, 6, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    assert_exact(model.to(memory_format=torch.channels_last), x, 2)


@pytest.mark.parametrize("transposed", [False, True], ids=["convolution", "transposed"])
def test_dynamic_batch(transposed):
    torch.manual_seed(0)
    model = nn.ConvTranspose2d(32, 40, 3, stride=2) if transposed else nn.Conv2d(32, 40, 3, padding=1)
    backend = Capture(configure({"recipe": "exact", "include": ["*"]}), text=False)
    torch._dynamo.reset()
    function = torch.compile(model, backend=backend)
    for batch in (2, 3, 5):
        x = torch.randn(batch, 32, 5, 5)
        torch._dynamo.mark_dynamic(x, 0)
        assert_same_step(model, x, function)
    assert len(backend.graphs) == 1 and sites(backend)[0].rewritten
