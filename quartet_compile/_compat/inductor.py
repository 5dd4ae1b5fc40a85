"""Inductor: compiling a graph, its options, its cache and its compiler. (Its lowerings: `kernels/lowering/inductor.py`.)"""

from __future__ import annotations

import functools
import inspect
import os
import pathlib
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch

from .installed import private


def compile_fx(gm: torch.fx.GraphModule, inputs: list, config_patches: dict[str, Any]) -> Any:
    """Inductor on a Dynamo graph, with configuration patches that last through the lazy backward compilation."""
    return private("torch._inductor.compile_fx:compile_fx")(gm, inputs, config_patches=config_patches)


def link_whole() -> None:
    """Let Inductor's compiler write to a name of its own, and move the result: a file that it was killed in the middle of
    would be taken for whole by every later process with the cache folder."""
    builder = private("torch._inductor.cpp_builder:CppBuilder")
    build = builder.build
    if getattr(build, "is_whole", False):
        return

    @functools.wraps(build)
    def whole(self: Any) -> None:
        target, output = self.get_target_file_path(), self._output
        partial = f"{target}.{os.getpid()}-{threading.get_ident()}.partial"
        if target not in output:
            return build(self)
        self._output = output.replace(target, partial)
        try:
            build(self)
            os.replace(partial, target)
        finally:
            self._output = output

    vars(whole)["is_whole"] = True
    builder.build = whole


def when_freed(compiled: Any, then: Callable[[], None]) -> None:
    """Call `then` once what `compile_fx` returned is freed: Dynamo keeps the function that it wraps."""
    weakref.finalize(private("torch._dynamo.eval_frame:innermost_fn")(compiled), then).atexit = False


def claim_joint_pass() -> str:
    """The Inductor option that our pass runs as. Raises `RuntimeError` if a pass of the user's own is there."""
    option = "joint_custom_pre_pass"
    if getattr(private("torch._inductor.config"), option):
        raise RuntimeError(
            f"backend='quartet' runs as Inductor's {option}, and torch._inductor.config.{option} is set to a pass of your "
            "own, which would be lost. Set it as joint_custom_post_pass instead, which runs after the rewriting."
        )
    return option


def mode_options(mode: str) -> dict[str, Any]:
    """Inductor's options for a `torch.compile` mode."""
    return dict(private("torch._inductor:list_mode_options")(mode))


def known_modes() -> list[str]:
    """The modes of `torch.compile`."""
    return ["default", *(m for m in private("torch._inductor:list_mode_options")() if m != "default")]


def inductor_options() -> dict[str, type | None]:
    """The names of Inductor's configuration, each with the class of its value, None where that isn't one class."""
    config = private("torch._inductor.config")
    types = {name: config.get_type(name) for name in config.get_config_copy()}
    return {name: kind if inspect.isclass(kind) else None for name, kind in types.items()}


def decompositions() -> dict:
    """The operator decompositions that Inductor uses; that of max-pooling needs Inductor's lowerings to be loaded."""
    private("torch._inductor.lowering")
    return private("torch._inductor.decomposition:select_decomp_table")()


def cache_dir() -> str:
    """Inductor's cache folder."""
    return private("torch._inductor.runtime.cache_dir_utils:cache_dir")()


def kept_graphs() -> int | None:
    """How many compiled graphs the cache folder has; None where Inductor keeps none."""
    config = private("torch._inductor.config")
    if config.force_disable_caches or not config.fx_graph_cache:
        return None
    return sum(1 for _ in pathlib.Path(cache_dir(), "fxgraph").glob("*/*"))


def cpp_compiler() -> str | None:
    """The C++ compiler that Inductor uses; None if there is none that runs."""
    try:
        return private("torch._inductor.cpp_builder:get_cpp_compiler")()
    except private("torch._inductor.exc:InvalidCxxCompiler"):
        return None


def is_in_graph(filename: str) -> bool:
    """Whether a frame of this source file is a compiled graph, or an FX graph that runs op by op."""
    return filename.startswith(_GRAPHS)


_GRAPHS = (os.path.join(os.path.dirname(torch.__file__), "_inductor") + os.sep, "<eval_with_key>")
