"""Dynamo's sources: where each input of a graph comes from, written as `L['self']._modules['up']._parameters['weight']`."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import torch
from torch import fx

from .tensors import plain_tensors

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "__self__")
"""The names under which wrappers keep the module that they wrap."""

_ROOT = re.compile(r"^(?:G\[['\"]__import_\w+['\"]\]\.(\w+)|[LG]\[(?:'([^']*)'|\"([^\"]*)\")\])")
"""The variable at the root of a source: `L['self']`, or a global of another module, `G['__import_m'].model`."""

_WRAPPED = re.compile(r"^L\[['\"]args['\"]\]\[0\]")
"""The module itself where a decorator wraps its `forward(self, ...)` as `wrapper(*args)`, as transformers' do."""

_REPLACED = re.compile(
    r"\.forward(?:\.func|\.__wrapped__|\.__self__|\.__closure__\[\d+\]\.cell_contents|\._quartet_compiled"
    r"|\._torchdynamo_inline)+|(?:\._quartet_compiled|\._torchdynamo_inline)+"
)
"""The way to a module through what somebody put in place of its forward: a closure, a partial, another's bound method; or
through that itself, where a graph starts in it."""

_GETATTR = re.compile(r"getattr\(([^(),]+), '([^']*)'\)")
_ITEM = re.compile(r"(?:\._modules|\._parameters|\._buffers|\.__dict__)?\[(?:'([^']*)'|\"([^\"]*)\"|(\d+))\]")


class Argument(NamedTuple):
    """An input of a Dynamo graph: the value that it had while the graph was made, and where it came from."""

    example: Any
    source: str


def arguments(gm: fx.GraphModule) -> dict[int, Argument]:
    """The inputs of a Dynamo graph that come from the program, by position."""
    found = {}
    for index, node in enumerate(node for node in gm.graph.nodes if node.op == "placeholder"):
        given = node.meta.get("grapharg")
        if given is not None:
            name = given.source.name
            found[index] = Argument(given.example, name() if callable(name) else name)  # a method up to torch 2.11
    return found


def example_shape(node: fx.Node) -> Any:
    """The shape of a node of a Dynamo graph, None of what has none; with those of its parts, which a rank may have in sizes
    of its own, as of a DTensor. Torch's cache of compiled graphs knows the whole one only."""
    value = node.meta.get("example_value")
    shape = getattr(value, "shape", None)
    parts = [part for part in plain_tensors(value) if part is not value] if isinstance(value, torch.Tensor) else []
    return (shape, *(part.shape for part in parts)) if parts else shape


def is_parameter(source: str) -> bool:
    """Whether a source is a module's parameter, or an item of a dict by the names of parameters, as `functional_call` has
    it: `L['params']['layers.0.weight']`."""
    found = _ROOT.match(source)
    rest = source[found.end() :] if found else ""
    key = re.search(r"\[(?:'([^']*)'|\"([^\"]*)\")\]$", rest)
    named = key is not None and (key.group(1) or key.group(2) or "").rpartition(".")[2] in ("weight", "bias")
    return "._parameters[" in source or named


def is_attribute(source: str) -> bool:
    """Whether a source is an attribute, as a module's `L['self'].up.weight` is, and no variable or item."""
    return re.search(r"\.\w+$", _without_getattr(source)) is not None


def is_buffer(source: str) -> bool:
    """Whether a source is a module's buffer."""
    return "._buffers[" in source


def root_name(source: str) -> str:
    """The variable at the root of a source: `w` of `L['w']`."""
    found = _ROOT.match(source)
    return next(group for group in found.groups() if group is not None) if found else source


def attributes(source: str) -> list[str]:
    """The attributes and items that lead from a source's root to what it names: `layers`, `0`, `up`."""
    path = _without_getattr(source)
    path = _REPLACED.sub("", _ROOT.sub("", _WRAPPED.sub("", path)))
    path = re.sub(r"\.__closure__\[\d+\]\.cell_contents", "", path)
    path = _ITEM.sub(lambda m: "." + next(group for group in m.groups() if group is not None), path)
    path = re.sub(r"\.(_modules|_parameters|_buffers)(?=\.|$)", "", path)
    return [part for part in path.split(".") if part]


def _without_getattr(path: str) -> str:
    """`L.model.layers.0.up` of `getattr(L.model.layers, '0').up`, and without its root, as a module under
    `torch.func.functional_call` has it."""
    plain, count = path, 1
    while count:
        plain, count = _GETATTR.subn(r"\1.\2", plain)
    return path if plain == path else re.sub(r"^[LG]\.\w+\.", "", plain)
