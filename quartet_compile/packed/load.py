"""`load_fp4`: a model's weights from files of FP4 weights, which stay packed."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import nn

from ..config.names import clean
from ..config.weights import Weight, weights_of
from ..errors import PackError
from ..serving.source import FolderSource
from .files import Layout, layout_of
from .module import hold

_Module = TypeVar("_Module", bound=nn.Module)


@torch.no_grad()
def load_fp4(model: _Module, folder: str | os.PathLike[str]) -> _Module:
    """Fill a model from a checkpoint folder with FP4 weights: those stay packed as `quartet_compile.pack` packs them, and
    are never there in high precision; all others are read as they are. In place; returns the model.

        with accelerate.init_empty_weights():      # weights on the meta device, which takes no memory
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        qc.load_fp4(model, "gpt-oss-20b")          # MXFP4 experts
        model.requires_grad_(False)                # then adapters beside it; recipe=qc.unrotated("quartet")

    model: a Module with the checkpoint's names, its weights with values or on the meta device. folder: safetensors, in one
    file or in shards, and config.json, whose `quantization_config` says how the weights lie: gpt-oss' MXFP4, or
    compressed-tensors' MXFP4 or NVFP4 (packed/files.py). They are read a tensor at a time.

    Raises `PackError` with the model as it was: for another format, names or shapes that don't fit, a tensor that the files
    lack or that the model hasn't, a buffer on the meta device that the files don't hold; and as it happens for a NaN.
    `ExportError` for a folder or file that can't be read.
    """
    source = FolderSource(pathlib.Path(folder), quantized=True)
    layout = layout_of(source.config)
    plan = _Plan(model, layout, source.shapes())
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in source.tensors():
        weight = plan.packed.get(layout.weight(name) or "")
        if weight is None:
            _put(plan.slots[name], tensor)
            continue
        found = parts.setdefault(weight.name, {})
        found[name.removeprefix(weight.name)] = tensor.clone()  # not a window on the file
        if len(found) == len(layout.suffixes):
            codes = layout.codes_of(weight.name, parts.pop(weight.name), weight.tensor.dtype)
            hold(weight.module, weight.attribute, codes)
    return model


_Slots = list[tuple[nn.Module, str]]
"""The modules that hold a tensor, each with the name that it has there."""


class _Plan:
    """What becomes of each tensor of the files. packed: the weights that are FP4 there, by name. slots: where each other one
    goes; a tied parameter has several."""

    def __init__(self, model: nn.Module, layout: Layout, files: Mapping[str, tuple[int, ...]]) -> None:
        weights = {weight.name: weight for weight in weights_of(model)}
        self.slots = _slots(model)
        self.packed: dict[str, Weight] = {}
        for name in dict.fromkeys(filter(None, map(layout.weight, files))):
            if name in weights:
                self.packed[name] = weights[name]
                _check(weights[name], layout, files)
            elif name not in self.slots:
                raise PackError(
                    f"The files have FP4 codes of {name!r}, which {type(model).__name__} hasn't; its weights are "
                    f"{', '.join(list(weights)[:4])}, ... Make the model of the checkpoint's config.json."
                )
        held = {name for name in files if layout.weight(name) not in self.packed}
        wanted = self.slots.keys() - self.packed.keys()
        self._check_names(model, held, wanted)
        for name in held:
            shape = tuple(_held(self.slots[name]).shape)
            if shape != tuple(files[name]):
                raise PackError(
                    f"The tensor {name!r} has the shape {tuple(files[name])} in the files; the model has {shape}."
                )

    def _check_names(self, model: nn.Module, held: set[str], wanted: set[str]) -> None:
        unknown = sorted(held - self.slots.keys())
        if unknown:
            raise PackError(f"The files have the tensor {unknown[0]!r}, which {type(model).__name__} hasn't.")
        given = {id(_held(self.slots[name])) for name in held | self.packed.keys()}
        lacking = sorted(name for name in wanted - held if id(_held(self.slots[name])) not in given)
        if lacking:
            raise PackError(f"The files lack {lacking[0]!r} and {len(lacking) - 1} more tensors of the model.")
        empty = [clean(name) for name, buffer in model.named_buffers() if buffer.is_meta and clean(name) not in held]
        if empty:
            raise PackError(
                f"The buffer {empty[0]!r} is on the meta device, and no file holds it; expected its values. Make the model "
                "with accelerate.init_empty_weights(), which leaves buffers alone."
            )


def _slots(model: nn.Module) -> dict[str, _Slots]:
    """Where the tensors of the state dict are held, by name: every place of each."""
    persistent = {clean(name) for name in model.state_dict(keep_vars=True)}
    places: dict[int, _Slots] = {}
    named: dict[str, int] = {}
    for path, module in model.named_modules():
        parameters = module.named_parameters(recurse=False, remove_duplicate=False)
        for key, tensor in (*parameters, *module.named_buffers(recurse=False, remove_duplicate=False)):
            name = clean(f"{path}.{key}" if path else key)
            if name in persistent:
                places.setdefault(id(tensor), []).append((module, key))
                named[name] = id(tensor)
    return {name: places[key] for name, key in named.items()}


def _check(weight: Weight, layout: Layout, files: Mapping[str, tuple[int, ...]]) -> None:
    """Raise `PackError` unless the files hold all parts of a weight in its shape."""
    if weight.turned is not layout.turned:
        raise PackError(
            f"The weight {weight.name!r} of {type(weight.module).__name__} is not "
            f"[{'E, K, N' if layout.turned else 'N, K'}], as the files take it to be. Make the model of the checkpoint's "
            "config.json."
        )
    shapes = layout.shapes(weight.shape)
    for suffix in layout.suffixes:
        got = files.get(weight.name + suffix)
        if shapes is None or got is None or tuple(got) != shapes[suffix]:
            expected = (
                "whole groups in each row" if shapes is None else f"{weight.name + suffix!r} of shape {shapes[suffix]}"
            )
            raise PackError(
                f"The weight {weight.name!r} is {tuple(weight.tensor.shape)} in the model; expected {expected}, got "
                f"{'none' if got is None else tuple(got)}. Make the model of the checkpoint's config.json."
            )


def _held(slots: _Slots) -> torch.Tensor:
    module, key = slots[0]
    held: torch.Tensor = getattr(module, key)
    return held


def _put(slots: _Slots, tensor: torch.Tensor) -> None:
    """Give a parameter or buffer its values, in its own dtype; in all its places if it has none yet."""
    held = _held(slots)
    if not held.is_meta:
        held.copy_(tensor)
        return
    made = tensor.to(held.dtype, copy=True)
    if isinstance(held, nn.Parameter):
        made = nn.Parameter(made, requires_grad=held.requires_grad)
    for module, key in slots:
        setattr(module, key, made)
