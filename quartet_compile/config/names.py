"""Module and parameter names as users write them: `layers.0.mlp.up_proj`, whatever Dynamo and wrappers made of it."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

_ROOT = re.compile(r"^(?:G\[['\"]__import_\w+['\"]\]\.(\w+)|[LG]\[(?:'([^']*)'|\"([^\"]*)\")\])")
"""The variable at the root of a Dynamo source: `L['self']`, or a global of another module, `G['__import_m'].model`."""

_WRAPPED = re.compile(r"^L\[['\"]args['\"]\]\[0\]")
"""The module itself where a decorator wraps its `forward(self, ...)` as `wrapper(*args)`, as transformers' do."""

_REPLACED = re.compile(
    r"\.forward(?:\.func|\.__wrapped__|\.__self__|\.__closure__\[\d+\]\.cell_contents|\._quartet_compiled"
    r"|\._torchdynamo_inline)+"
)
"""The way to a module through what somebody put in place of its forward: a closure, a partial, another's bound method."""

_GETATTR = re.compile(r"getattr\(([^(),]+), '([^']*)'\)")
_ITEM = re.compile(r"(?:\._modules|\._parameters|\._buffers|\.__dict__)?\[(?:'([^']*)'|\"([^\"]*)\"|(\d+))\]")
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "__self__")


def clean(path: str) -> str:
    """A Dynamo source or module path without its root, its item syntax and the names of wrappers (a first `module` is
    that of data parallel wrappers)."""
    path = _without_getattr(path)
    path = _REPLACED.sub("", _ROOT.sub("", _WRAPPED.sub("", path)))
    path = re.sub(r"\.__closure__\[\d+\]\.cell_contents", "", path)
    path = _ITEM.sub(lambda m: "." + next(group for group in m.groups() if group is not None), path)
    path = re.sub(r"\.(_modules|_parameters|_buffers)(?=\.|$)", "", path)
    parts = [part for part in path.split(".") if part and part not in _WRAPPERS]
    return ".".join(parts[1:] if parts[:1] == ["module"] else parts)


def _without_getattr(path: str) -> str:
    """`L.model.layers.0.up` of `getattr(L.model.layers, '0').up`, and without its root, as a module under
    `torch.func.functional_call` has it."""
    plain, count = path, 1
    while count:
        plain, count = _GETATTR.subn(r"\1.\2", plain)
    return path if plain == path else re.sub(r"^[LG]\.\w+\.", "", plain)


def root_name(path: str) -> str:
    """The variable at the root of a Dynamo source: `w` of `L['w']`."""
    found = _ROOT.match(path)
    return next(group for group in found.groups() if group is not None) if found else path


def is_parameter_key(path: str) -> bool:
    """Whether a Dynamo source is an item of a dict by the names of parameters: `L['params']['layers.0.weight']`."""
    found = _ROOT.match(path)
    rest = path[found.end() :] if found else ""
    key = re.search(r"\[(?:'([^']*)'|\"([^\"]*)\")\]$", rest)
    return key is not None and (key.group(1) or key.group(2) or "").rpartition(".")[2] in ("weight", "bias")


def lineage(name: str) -> list[str]:
    """A dotted name and all its ancestors, the name first."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]


def matches(pattern: str, names: Iterable[str]) -> bool:
    """Whether a glob matches one of the names or an ancestor of one: `layers.0` covers `layers.0.mlp.up_proj`."""
    return any(fnmatch.fnmatchcase(ancestor, pattern) for name in names for ancestor in lineage(name))


def names_in(model: Any) -> dict[int, str]:
    """The names of all parameters and modules of a model, by `id`; of what has several, the first."""
    named = [*model.named_parameters(), *model.named_modules()]
    return {id(item): clean(name) for name, item in named}


def parameter_names(model: nn.Module) -> Mapping[int, str]:
    """The name of each parameter of a model, by `id`; a tied parameter has its first name."""
    return {id(parameter): clean(name) for name, parameter in model.named_parameters()}
