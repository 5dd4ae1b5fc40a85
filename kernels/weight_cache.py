"""What is made of weights, kept while their values are the same: quantized once, a weight gives the same codes to every
microbatch of a step, in evaluation, in generation, and for as long as it is frozen.

Nothing tells reliably that a weight was written to: `.data` doesn't, nor a fused optimizer, FSDP or another process. So each
call reads the weight, and what was kept is given only for the bytes that it was made of (`cpu/fingerprint.py`), and for the
same quantizer, layout and dtype. What is given is a copy, since graphs reuse the memory of their operands.

What is kept belongs to the memory of the weight, whoever reads it: graphs that share a weight share it, and blocks that
share a graph don't disturb each other. It is dropped when the values are others, when the memory of the weight is freed, and
when a graph that was compiled with the cache is (`forget`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from ..debug import VARIABLE, asked
from ..errors import QuartetError, WeightCacheError
from ..process import process
from .cpu.fingerprint import fingerprint
from .cpu.native import matrix_of

Tensors = tuple[torch.Tensor, ...]


class _Kept(NamedTuple):
    """fingerprints: of what it was made of. made: the results, which nobody else has."""

    fingerprints: tuple
    made: Tensors


_lock = threading.RLock()  # which freeing a graph takes, in the middle of anything


def of_weight(weight: torch.Tensor, how: tuple, make: Callable[[], Tensors]) -> Tensors:
    """What `make` makes of a weight, a matrix on the CPU. how: what decides about it besides the values of the weight."""
    _require_cpu(weight)
    return _kept(weight, (fingerprint(matrix_of(weight)[0]),), how, make, renews=True)


def of_codes(weight: torch.Tensor, blocks: Sequence[torch.Tensor], how: tuple, make: Callable[[], Tensors]) -> Tensors:
    """What `make` makes of the codes, scales and tensor scale of a weight, kept beside what was made of that."""
    _require_cpu(weight)
    return _kept(weight, tuple(fingerprint(part.contiguous()) for part in blocks), how, make, renews=False)


def forget() -> None:
    """Free what is kept. Whoever needs it makes it again."""
    with _lock:
        process.weights.clear()


def _kept(weight: torch.Tensor, fingerprints: tuple, how: tuple, make: Callable[[], Tensors], renews: bool) -> Tensors:
    """renews: what was made of other values of the weight is no longer needed."""
    storage = weight.untyped_storage()
    view = weight.storage_offset(), weight.shape, weight.stride(), weight.dtype
    with _lock:
        found = process.weights.get(storage, {}).get(view, {}).get(how)
    if found is not None and found.fingerprints == fingerprints:
        if asked("weights"):
            _compare(found.made, make(), how)
    else:
        found = _Kept(fingerprints, make())
        with _lock:
            views = process.weights.setdefault(storage, {})
            others = views.get(view, {})
            if renews and all(kept.fingerprints != fingerprints for kept in others.values()):
                others = {}
            views[view] = {**others, how: found}
    return tuple(part.clone() for part in found.made)


def _compare(kept: Tensors, made: Tensors, how: tuple) -> None:
    for index, (before, now) in enumerate(zip(kept, made, strict=True)):
        if not torch.equal(before.view(torch.uint8), now.view(torch.uint8)):
            raise WeightCacheError(
                f"The weight cache kept other bits in result {index} of {how} than the weight gives now; expected the same. "
                f"This is a bug in Quartet Compile: leave out weight_cache=True, and report what {VARIABLE}=weights says."
            )


def _require_cpu(weight: torch.Tensor) -> None:
    if not weight.is_cpu:
        raise QuartetError(
            f"The weight cache got a weight on {weight.device}; expected one on the CPU. Leave out weight_cache=True."
        )


def how_of(call: Any) -> tuple:
    """Everything but tensors that decides about the results of an op that draws nothing. Raises `QuartetError` for one that
    draws, of which nothing can be kept."""
    named = call._asdict()
    if named.get("seed") is not None or named.get("sign_seed") is not None:
        raise QuartetError(
            f"The weight cache got {call.quantizer} with a seed; expected a quantizer that draws nothing. Leave out "
            "cached_as and cached_for."
        )
    return type(call).__name__, *(value for value in call if not isinstance(value, torch.Tensor))
