"""Put back what a call changes: attributes, gradients, tensors, random state, torch's settings, Dynamo's memory."""

from __future__ import annotations

import contextlib
import copy
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from .. import _compat
from ..callables import modules_of, variables_of


def tensors_of(model: Callable) -> list[torch.Tensor]:
    """Parameters, buffers, tensors in attributes of the modules that a callable runs, and in the plain dicts and lists
    among these; the state of the optimizers that it refers to."""
    return [value for box in containers(model) for value in values_of(box) if isinstance(value, torch.Tensor)]


@contextlib.contextmanager
def memory_restored(tensors: Iterable[torch.Tensor]) -> Iterator[None]:
    """Give the tensors back the memory that they had, where the code inside gave them other (`weight.data = ...`)."""
    plain = {id(part): part for tensor in tensors for part in _compat.plain_tensors(tensor)}.values()
    before = [(part, part.detach(), _place(part)) for part in plain]
    try:
        yield
    finally:
        for part, alias, place in before:
            if _place(part) != place:
                part.data = alias


def _place(tensor: torch.Tensor) -> tuple:
    address = 0 if tensor.is_meta or _compat.is_fake(tensor) else tensor.data_ptr()
    return tensor.device, address, tensor.shape, tensor.stride(), tensor.dtype


@contextlib.contextmanager
def values_restored(tensors: Iterable[torch.Tensor]) -> Iterator[None]:
    """Put back what the tensors and their gradients hold, bit for bit, and which gradients they have."""
    tensors = list(tensors)
    leaves = [(tensor, tensor.grad) for tensor in tensors if tensor.is_leaf]
    held = [*tensors, *(gradient for _, gradient in leaves if gradient is not None)]
    parts = [part for tensor in held for part in _compat.plain_tensors(tensor)]
    storages = {part.untyped_storage().data_ptr(): part.untyped_storage() for part in parts}
    saved = [(storage, storage.clone()) for storage in storages.values()]
    try:
        with memory_restored(held):
            yield
    finally:
        for storage, copy in saved:
            storage.copy_(copy)
        for tensor, gradient in leaves:
            if tensor.grad is not gradient:
                tensor.grad = gradient


@contextlib.contextmanager
def random_state_restored() -> Iterator[None]:
    """Put back torch's generators, of the CPU and of every GPU in use, Python's and NumPy's."""
    python, numpy = random.getstate(), sys.modules.get("numpy")
    numpys = numpy.random.get_state() if numpy else None
    gpus = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(gpus):
            yield
    finally:
        random.setstate(python)
        if numpy:
            numpy.random.set_state(numpys)


_SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    (torch.get_num_threads, torch.set_num_threads),
    (lambda: torch.is_autocast_enabled("cpu"), lambda on: torch.set_autocast_enabled("cpu", on)),
    (lambda: torch.is_autocast_enabled("cuda"), lambda on: torch.set_autocast_enabled("cuda", on)),
    (lambda: torch.get_autocast_dtype("cpu"), lambda dtype: torch.set_autocast_dtype("cpu", dtype)),
    (lambda: torch.get_autocast_dtype("cuda"), lambda dtype: torch.set_autocast_dtype("cuda", dtype)),
)


@contextlib.contextmanager
def settings_restored() -> Iterator[None]:
    """Put back torch's settings that a model's code may change and not change back."""
    before = [(put, get, get()) for get, put in _SETTINGS]
    try:
        yield
    finally:
        for put, get, value in before:
            if get() != value:
                put(value)


def optimizers_of(model: Callable) -> list[torch.optim.Optimizer]:
    """The optimizers among a function's variables, as of a training step."""
    return [value for value in variables_of(model) if isinstance(value, torch.optim.Optimizer)]


@contextlib.contextmanager
def untouched(model: Callable) -> Iterator[None]:
    """Put back what the code inside assigns to the modules and optimizers of a callable (a step counter, a cached table, a
    gradient, a moment), what FSDP2 notes of them, and what Dynamo has learnt of changing sizes."""
    parameters = [parameter for module in modules_of(model) for parameter in module.parameters()]
    gradients = [(parameter, parameter.grad, parameter.requires_grad) for parameter in parameters]
    sharding = [box for module in modules_of(model) for box in _compat.fsdp_boxes(module)]
    saved = [(box, copy.copy(box)) for box in (*containers(model), *sharding)]
    try:
        with _compat.dynamo_sizes_restored():
            yield
    finally:
        for box, before in saved:
            _restore(box, before)
        for parameter, gradient, required in gradients:
            parameter.grad = gradient
            parameter.requires_grad = required


def containers(model: Callable) -> list[dict | list]:
    """The attributes of each module and optimizer of a callable, and the plain dicts and lists among them."""
    found: list[dict | list] = []
    for module in (inner for root in modules_of(model) for inner in root.modules()):
        found += [vars(module), *(value for value in vars(module).values() if type(value) in (dict, list))]
    for optimizer in optimizers_of(model):
        found += [vars(optimizer), optimizer.state, *optimizer.state.values()]
        found += [optimizer.param_groups, *optimizer.param_groups]
    return found


def values_of(box: dict | list) -> Iterable[Any]:
    """What a container holds."""
    return box.values() if isinstance(box, dict) else box


def _restore(box: dict | list, before: dict | list) -> None:
    if isinstance(box, list):
        if [*map(id, box)] != [*map(id, before)]:
            box[:] = before
    elif [*map(id, values_of(box))] != [*map(id, values_of(before))] or [*box] != [*before]:
        box.clear()
        box.update(before)
