"""The private parts of torch that the backend and the passes use, in one place.

Supported: torch 2.11 and later. A torch that is older, or that lacks one of these parts, gives an `ImportError` that
names the part. (`kernels/lowering.py` is the same for Inductor's lowering.)
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

MINIMUM_TORCH = (2, 11)


def _version() -> tuple[int, ...]:
    return tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])


def _private(path: str) -> Any:
    """The object at `module:attribute`, or an error that says which part of torch is missing."""
    module, _, attribute = path.partition(":")
    try:
        loaded = importlib.import_module(module)
        return getattr(loaded, attribute) if attribute else loaded
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f"quartet_compile needs {path.replace(':', '.')}, which torch {torch.__version__} lacks. "
            f"It is tested with torch 2.11 to 2.13: install one of them, or a newer quartet_compile."
        ) from error


if _version() < MINIMUM_TORCH:
    raise ImportError(
        f"quartet_compile needs torch >= {'.'.join(map(str, MINIMUM_TORCH))}, found {torch.__version__}. "
        "Upgrade with: pip install -U torch"
    )

ShortenTraceback: type[Exception] = _private("torch._dynamo.exc:ShortenTraceback")
"""An error of this class reaches the user as it is; any other becomes a `BackendCompilerFailed`."""

OpOverload: type = _private("torch._ops:OpOverload")
FakeTensorMode: type = _private("torch._subclasses:FakeTensorMode")
OptimizedModule: type = _private("torch._dynamo:OptimizedModule")
CustomGraphPass: type = _private("torch._inductor.custom_graph_pass:CustomGraphPass")
GradOutput: type = _private("torch._functorch._aot_autograd.descriptors:GradAOTOutput")
PlainInput: type = _private("torch._functorch._aot_autograd.descriptors:PlainAOTInput")
ParamInput: type = _private("torch._functorch._aot_autograd.descriptors:ParamAOTInput")


def compile_fx(gm: torch.fx.GraphModule, inputs: list, config_patches: dict[str, Any]) -> Any:
    """Inductor on a Dynamo graph, with configuration patches that last through the lazy backward compilation."""
    return _private("torch._inductor.compile_fx:compile_fx")(gm, inputs, config_patches=config_patches)


def mode_options(mode: str) -> dict[str, Any]:
    """Inductor's options for a `torch.compile` mode."""
    return dict(_private("torch._inductor:list_mode_options")(mode))


def known_modes() -> list[str]:
    """The modes of `torch.compile`."""
    return ["default", *(m for m in _private("torch._inductor:list_mode_options")() if m != "default")]


def inductor_options() -> list[str]:
    """The names of Inductor's configuration."""
    return sorted(_private("torch._inductor.config").get_config_copy())


def cache_dir() -> str:
    """Inductor's cache folder."""
    return _private("torch._inductor.runtime.cache_dir_utils:cache_dir")()


def aot_module_simplified(gm: torch.fx.GraphModule, inputs: list, **compilers: Any) -> Any:
    """AOTAutograd on a Dynamo graph with the given compilers."""
    return _private("torch._functorch.aot_autograd:aot_module_simplified")(gm, inputs, **compilers)


def decompositions() -> dict:
    """The operator decompositions that Inductor uses."""
    return _private("torch._inductor.decomposition:select_decomp_table")()


def make_boxed(function: Any) -> Any:
    """Wrap a function of many arguments as AOTAutograd calls compiled graphs."""
    return _private("functorch.compile:make_boxed_func")(function)


def default_partition(*args: Any, **kwargs: Any) -> Any:
    """The min-cut partitioner, as Inductor calls it."""
    return _private("torch._functorch.partitioners:min_cut_rematerialization_partition")(
        *args, compiler="inductor", **kwargs
    )


def graph_break_counter() -> dict[str, int]:
    """Dynamo's count of graph breaks by reason."""
    return _private("torch._dynamo.utils:counters")["graph_break"]
