"""Capture a model by running it for real, once, where fake tensors don't do: its code reads values.

What the call changes is put back as it was, bit for bit: what weights, buffers, gradients, inputs, tensors in attributes of
modules and the state of optimizers hold, random state, and torch's settings of the thread. It takes memory for a copy of
all of these beside what a forward pass takes. What it does outside of the process, as printing, stays done.
"""

from __future__ import annotations

import torch

from .. import _compat
from ..callables import modules_of
from .call import Call
from .capture import Capture, Ran, run
from .eager import RealEagerProducts
from .restore import tensors_of, values_restored


def try_for_real(call: Call, backend: Capture) -> Ran:
    """Run a call compiled by `backend`, and put everything back. What the model's code raises is the result's error."""
    inputs: dict[str, torch.Tensor] = {}

    def keep(name: str, tensor: torch.Tensor) -> torch.Tensor:
        inputs[name] = tensor
        return tensor

    call = call.map(keep)
    backend.names = {**backend.names, **{id(tensor): name for name, tensor in reversed(inputs.items())}}
    tensors = [*inputs.values(), *tensors_of(call.model)]
    with values_restored(tensors):
        return run(call, backend, RealEagerProducts(modules_of(call.model)))


def why_impossible(call: Call) -> str:
    """Why a call can't be run for real; empty if it can."""
    tensors: list[torch.Tensor] = []
    call.map(lambda _, tensor: tensors.append(tensor))
    tensors += tensors_of(call.model)
    if any(_compat.is_fake(tensor) or plain.is_meta for tensor in tensors for plain in _compat.plain_tensors(tensor)):
        return "its tensors have no values"
    return ""
