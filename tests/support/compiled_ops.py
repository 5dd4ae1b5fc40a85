"""Ops compiled by Inductor on the device under test, with the proof that its templates ran.

`QUARTET_GPU_TESTS_DEVICE=cpu` runs the tests of this folder on the CPU, without that proof: a trial of the tests themselves.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch asks once, before its first product

import pytest
import torch
import torch._dynamo
import torch._inductor.config
from products import decode
from torch._inductor.utils import run_and_get_code

from quartet_compile.kernels import lowering  # noqa: F401  (registers the templates with Inductor)
from quartet_compile.kernels.numerics import grouped, reference
from quartet_compile.kernels.numerics.reference import Blocks

DEVICE = torch.device(os.environ.get("QUARTET_GPU_TESTS_DEVICE", "cuda"))
ON_GPU = DEVICE.type == "cuda"
HAS_FP4 = ON_GPU and torch.cuda.is_available() and torch.cuda.get_device_capability()[0] >= 10

gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        ON_GPU and not torch.cuda.is_available(), reason=f"PyTorch {torch.__version__} sees no CUDA device"
    ),
]
"""Marks of every test file here."""


def run_compiled(
    function: Callable, cases: Iterable[Sequence], templates: Sequence[str], *, dynamic: bool = True
) -> tuple[list[Any], list[str]]:
    """The results of `function(*case)`, compiled, on the CPU, and the generated code of every graph that was compiled.

    Sizes are dynamic, so that one compiled kernel serves many cases. templates: those that each graph must contain.
    """

    def run_all() -> list[Any]:
        compiled = torch.compile(function, fullgraph=True, dynamic=dynamic)
        results = []
        for case in cases:
            arguments = [to_device(argument) for argument in case]
            poison_free_memory()
            results.append(compiled(*arguments))
        return results

    settings = {"force_disable_caches": True}  # code that a cache gives back isn't seen
    with torch._inductor.config.patch(settings), torch._dynamo.config.patch(recompile_limit=64):
        results, codes = run_and_get_code(run_all)
    for code in codes:
        assert_templates(code, templates)
    assert codes
    return [to_cpu(result) for result in results], codes


def assert_templates(code: str, templates: Sequence[str]) -> None:
    """A generated module has these templates and calls no op of ours but those that have none."""
    if not ON_GPU:
        return
    calls = called_ops(code) - {"seed", "separate_groups", "separate_matrices"}
    assert not calls, f"Inductor calls {', '.join(sorted(calls))} instead of a template"
    for name in templates:
        if name != "scaled_mm" or HAS_FP4:  # elsewhere decoded and multiplied by Inductor's own mm
            assert f"# quartet: {name} " in code, f"no template {name} in the generated code"


def called_ops(code: str) -> set[str]:
    """Ops of ours that a generated module calls: comments name those that it replaced, too."""
    lines = [line for line in code.splitlines() if not line.lstrip().startswith("#")]
    return set(re.findall(r"torch\.ops\.quartet\.(\w+)", "\n".join(lines)))


def poison_free_memory() -> None:
    """Fill free blocks of the caching allocator, where outputs will be, with bytes that no test expects."""
    if ON_GPU:
        _ = [torch.full((1 << k,), 0xA5, dtype=torch.uint8, device=DEVICE) for k in range(9, 24)]


def to_device(value: Any) -> Any:
    """On the device, with the same strides, the offset into the storage too."""
    if not isinstance(value, torch.Tensor) or value.device == DEVICE:
        return value
    storage = torch.as_strided(value, (value.untyped_storage().nbytes() // value.element_size(),), (1,), 0)
    return torch.as_strided(storage.to(DEVICE), value.shape, value.stride(), value.storage_offset())


def to_cpu(value: Any) -> Any:
    """Tensors, and tuples of them, on the CPU."""
    return tuple(map(to_cpu, value)) if isinstance(value, (tuple, list)) else value.cpu()


@pytest.fixture
def float32_reductions(monkeypatch):
    """cuBLAS may add the parts of a split contraction in bf16; here it must not, or the bound says nothing."""
    if ON_GPU:
        monkeypatch.setattr(torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", False)


def accumulation_error(codes: list[str], k: int) -> float:
    """How far a sum of K exact products may be from their exact sum, over the sum of their magnitudes.

    Every partial sum is at most the sum of magnitudes, so each addition adds one relative error of the accumulator. The
    float32 accumulators of tensor cores truncate where they align: 2^-23, K times. Those of FP8 products on Hopper and
    Ada keep 14 bits, 2^-13, for 128 products at most, and are then added in float32.
    """
    eighth = ON_GPU and not HAS_FP4 and any("fp8" in code or "float8" in code for code in codes)
    return (min(k, 128) * 2.0**-13 if eighth else 0.0) + (k + 2) * 2.0**-23


def product_bound(a: Blocks, b: Blocks, alpha: float, dtype: torch.dtype, codes: list[str]):
    """`alpha a b^T` in float64, and how far from it a result may be: the accumulation's error, then at most two roundings
    to `dtype`, before and after `alpha`."""
    x, y = decode(a), decode(b)
    exact, magnitudes = alpha * (x @ y.t()), abs(alpha) * (x.abs() @ y.abs().t())
    added = accumulation_error(codes, x.shape[1]) * magnitudes
    return exact, added + torch.finfo(dtype).eps * (exact.abs() + added)


def assert_within(result: torch.Tensor, exact: torch.Tensor, bound: torch.Tensor) -> None:
    assert torch.equal(result.isnan(), exact.isnan())
    error = (result.double() - exact).abs() / bound.clamp(min=torch.finfo(torch.float64).tiny)
    assert error.nan_to_num(0.0).max() <= 1, f"{error.nan_to_num(0.0).max():.2f} times the bound"


def assert_grouped(gemm: str, make) -> None:
    """A grouped product of operands `make(rows, columns)`: groups of no row, of one block and of several tiles, and rows
    of no group after them."""
    n, k, tokens, groups = 96, 160, 416, torch.tensor([32, 32, 352, 384], dtype=torch.int32)
    rows, columns = {
        "fprop": ((tokens, k), (4 * n, k)),
        "dgrad": ((tokens, n), (k, 4 * n)),
        "wgrad": ((n, tokens), (k, tokens)),
    }[gemm]
    torch.manual_seed(4)
    a, b = make(*rows), make(*columns)

    left, right = a.format, b.format

    def product(a0, a1, a2, b0, b1, b2, ends):
        how = (ends, 4, gemm, 16 / 9, torch.float32)
        return torch.ops.quartet.scaled_grouped_mm(a0, a1, a2, left, b0, b1, b2, right, *how)

    (result,), _ = run_compiled(product, [(*a[:3], *b[:3], groups)], ["scaled_grouped_mm"], dynamic=False)
    wanted = grouped.scaled_grouped_mm(a, b, groups, 4, gemm, 16 / 9, torch.float32, reference.scaled_mm)
    assert torch.equal(result.isnan(), wanted.isnan())
    assert (result - wanted).nan_to_num(0.0).abs().max() <= 1e-4 * wanted.nan_to_num(0.0).abs().max()
