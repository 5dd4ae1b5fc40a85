"""How far rounding alone may move a training step: the tolerance of whole models, which no multiple of a result is.

The untouched model runs once as it is, and a few times with every product and sum moved, forward and backward, by up to
what accumulation.py allows it, `gamma_K sum |a_k b_k|`, each element at random. How far an output or a gradient then comes
from its first value is how far another order of sums may bring it: through all layers, and where it cancels. The furthest
of the runs is allowed. Sums in another order reach a hundredth of it (measured on the models of models.py), so that this
leaves room; a wrong gradient is off by a part of itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from accumulation import ROTATIONS, gamma
from models import gradients
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
RUNS = 3
OPERANDS = {
    aten.mm.default: (0, 1),
    aten.bmm.default: (0, 1),
    aten.addmm.default: (0, 1, 2),
    aten.baddbmm.default: (0, 1, 2),
    aten._grouped_mm.default: (0, 1),
    aten.convolution.default: (0, 1, 2),
    aten.convolution_backward.default: (0, 1, 2),
    aten.sum.default: (0,),
    aten.sum.dim_IntList: (0,),
}
"""Ops that add products, or just add, with the operands whose magnitudes bound what they add."""


class Moved(TorchDispatchMode):
    """Inside, the results of products and sums are moved as far as rounding may move them, at random."""

    supports_higher_order_operators = True

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._noise = torch.Generator().manual_seed(seed)  # not the one that dropout draws from

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Mapping | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func not in OPERANDS and not _is_experts(func):
            return result
        positive = [a.abs() if _is_operand(func, at, a) else a for at, a in enumerate(args)]
        reach = func(*positive, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            return self._moved(result, reach, _terms(func, args, result))
        terms = _terms(func, args, result)
        return tuple(a if a is None else self._moved(a, b, terms) for a, b in zip(result, reach, strict=True))

    def _moved(self, result: torch.Tensor, reach: torch.Tensor, terms: int) -> torch.Tensor:
        if not result.is_floating_point():
            return result
        furthest = gamma(terms + ROTATIONS) * reach + torch.finfo(result.dtype).eps * result.abs()
        noise = torch.rand(result.shape, generator=self._noise, dtype=torch.float64)
        return result + ((2 * noise - 1) * furthest).to(result.dtype)


def _terms(func: Any, args: tuple, result: Any) -> int:
    """How many products an element of the result adds, at most."""
    if _is_experts(func):
        return max(size for a in args if isinstance(a, torch.Tensor) for size in a.shape)
    if func is aten.convolution.default:
        return _elements(args[1])
    if func is aten.convolution_backward.default:  # of dX and of dW
        return max(_elements(args[2]), *(a.shape[0] * math.prod(a.shape[2:]) for a in args[:2]))
    if func.name().startswith("aten::sum"):
        return args[0].numel() // max(result.numel(), 1)
    return max(args[at].shape[-1] for at in OPERANDS[func][-2:])


def _is_experts(func: Any) -> bool:
    """transformers' grouped product, or its backward; only there once transformers is."""
    return isinstance(func, torch._ops.OpOverload) and func.name().startswith("transformers::grouped_mm_fallback")


def _is_operand(func: Any, at: int, argument: Any) -> bool:
    if not isinstance(argument, torch.Tensor) or not argument.is_floating_point():
        return False
    return _is_experts(func) or at in OPERANDS[func]


def _elements(filters: torch.Tensor) -> int:
    """What one filter holds, or, transposed, one channel."""
    return max(math.prod(filters.shape[1:]), filters.shape[0] * math.prod(filters.shape[2:]))


def step(model: nn.Module, x: torch.Tensor, function: Any = None, seed: int = 0) -> dict[str, torch.Tensor]:
    """The output and all gradients of `gradients` as one dict, that of `x` too where it has one."""
    x.grad = None
    y, found = gradients(model, x, seed=seed, function=function)
    own = {} if x.grad is None else {"gradient of x": x.grad.clone()}
    return {"output": y, **own, **found}


def assert_same_step(model: nn.Module, x: torch.Tensor, function: Any, seed: int = 0) -> None:
    """`function`, the model compiled, has its output and gradients, but for rounding."""
    ours = step(model, x, function, seed)
    assert_rounding(ours, lambda: step(model, x, seed=seed))


def assert_rounding(
    ours: Mapping[str, torch.Tensor],
    run: Callable[[], Mapping[str, torch.Tensor]],
    expected: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Whether values are those of `run`, an untouched model's, but for rounding. expected: values to compare with in place
    of those of `run`, which has the same sums of other numbers, as under dropout."""
    plain, reach = reach_of(run)
    wanted = plain if expected is None else expected
    assert ours.keys() == wanted.keys()
    for name, value in wanted.items():
        scale = 1.0 if expected is None else value.double().norm().item() / plain[name].double().norm().item()
        apart, allowed = _apart(ours[name], value), reach[name] * scale
        assert apart <= allowed, f"{name} is {apart:.3g} apart; rounding moves it by at most {allowed:.3g}"


def share_of_rounding(
    ours: Mapping[str, torch.Tensor], run: Callable[[], Mapping[str, torch.Tensor]]
) -> tuple[float, str]:
    """The same as a figure: how far the furthest value is from that of `run`, over what rounding may move it; and which."""
    plain, reach = reach_of(run)
    assert ours.keys() == plain.keys(), ours.keys() ^ plain.keys()
    return max((_apart(ours[name], value) / reach[name], name) for name, value in plain.items())


def reach_of(run: Callable[[], Mapping[str, torch.Tensor]]) -> tuple[Mapping[str, torch.Tensor], dict[str, float]]:
    """What `run` returns, and how far rounding moves each value of it, in the Frobenius norm."""
    plain, reached = run(), []
    for seed in range(RUNS):
        with Moved(seed):
            reached.append(run())
    return plain, {name: max(_apart(moved[name], value) for moved in reached) for name, value in plain.items()}


def _apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.double() - b.double()).norm().item()
