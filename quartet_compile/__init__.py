"""Train any PyTorch model with its matrix products in 4-bit floating point: `torch.compile(model, backend="quartet")`.

An import of the package loads little: torch's compiler, and most of ours, come with the first name that needs them.
"""

import importlib
import importlib.metadata as _metadata
from typing import TYPE_CHECKING, Any

from . import _compat
from . import kernels as _kernels  # noqa: F401  registers torch.ops.quartet

if TYPE_CHECKING:
    from . import callbacks, law
    from .advice.advice import Advice
    from .advice.advise import advise
    from .backend import register_backend
    from .capture.explain import explain, graph_diff
    from .config.marks import fp4, no_fp4
    from .config.outer_blocks import first_and_last_blocks
    from .config.presets import mix, recipe, recipes, register_recipe, unrotated
    from .config.recipe import Gemm, Recipe
    from .config.toml import load_recipe, save_recipe
    from .cross.artifact import Artifact
    from .cross.cross_compile import CrossCompileError, cross_compile
    from .errors import (
        CaptureError,
        ExportError,
        OptionError,
        PackError,
        PatternError,
        QuantizerError,
        QuartetError,
        RecipeError,
        ReportError,
        StatsError,
        StrictError,
        WeightCacheError,
        WireError,
    )
    from .frontend.api import quartet
    from .frontend.enable import disable, enable
    from .frontend.set_recipe import set_recipe
    from .gathers.fsdp import gather_codes
    from .kernels.quantizer import Quantizer, quantizer
    from .machines.targets import TARGETS, Target
    from .origin import check_provenance, provenance
    from .packed.load import load_fp4
    from .packed.pack import pack, unpack
    from .quantized import QuantizedTensor, quantize
    from .report.report import Report, Site
    from .report.stats import Stats, stats
    from .serving.export import export
    from .serving.record import Exported, ExportedTensor
    from .serving.state import ExportedState, export_state
    from .warn import QuartetWarning

_HOMES = {
    "advice.advice": ("Advice",),
    "advice.advise": ("advise",),
    "backend": ("register_backend",),
    "capture.explain": ("explain", "graph_diff"),
    "config.marks": ("fp4", "no_fp4"),
    "config.outer_blocks": ("first_and_last_blocks",),
    "config.presets": ("mix", "recipe", "recipes", "register_recipe", "unrotated"),
    "config.recipe": ("Gemm", "Recipe"),
    "config.toml": ("load_recipe", "save_recipe"),
    "cross.artifact": ("Artifact",),
    "cross.cross_compile": ("CrossCompileError", "cross_compile"),
    "machines.targets": ("TARGETS", "Target"),
    "errors": (
        "CaptureError",
        "ExportError",
        "OptionError",
        "PackError",
        "PatternError",
        "QuantizerError",
        "QuartetError",
        "RecipeError",
        "ReportError",
        "StatsError",
        "StrictError",
        "WeightCacheError",
        "WireError",
    ),
    "serving.export": ("export",),
    "serving.record": ("Exported", "ExportedTensor"),
    "serving.state": ("ExportedState", "export_state"),
    "frontend.api": ("quartet",),
    "frontend.enable": ("disable", "enable"),
    "frontend.set_recipe": ("set_recipe",),
    "gathers.fsdp": ("gather_codes",),
    "kernels.quantizer": ("Quantizer", "quantizer"),
    "origin": ("check_provenance", "provenance"),
    "packed.load": ("load_fp4",),
    "packed.pack": ("pack", "unpack"),
    "quantized": ("QuantizedTensor", "quantize"),
    "report.report": ("Report", "Site"),
    "report.stats": ("Stats", "stats"),
    "warn": ("QuartetWarning",),
}
"""The modules that define the public names."""

_MODULES = ("callbacks", "law")
"""The public names that are modules."""


def __getattr__(name: str) -> Any:
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if name in _MODULES:
        found: Any = importlib.import_module(f".{name}", __name__)
    elif home is not None:
        found = getattr(importlib.import_module(f".{home}", __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _watcher_of(*what: Any) -> Any:
    from .frontend.watch import watcher_of

    return watcher_of(*what)


def _backend_names() -> list[str]:
    from .backend import backend_names

    return backend_names()


_compat.watch_calls(_watcher_of)
_compat.extend_accelerate(_backend_names)

__version__ = _metadata.version("quartet-compile")

__all__ = [
    "TARGETS",
    "Advice",
    "Artifact",
    "CaptureError",
    "CrossCompileError",
    "ExportError",
    "Exported",
    "ExportedState",
    "ExportedTensor",
    "Gemm",
    "OptionError",
    "PackError",
    "PatternError",
    "QuantizedTensor",
    "Quantizer",
    "QuantizerError",
    "QuartetError",
    "QuartetWarning",
    "Recipe",
    "RecipeError",
    "Report",
    "ReportError",
    "Site",
    "Stats",
    "StatsError",
    "StrictError",
    "Target",
    "WeightCacheError",
    "WireError",
    "__version__",
    "advise",
    "callbacks",
    "check_provenance",
    "cross_compile",
    "disable",
    "enable",
    "explain",
    "export",
    "export_state",
    "first_and_last_blocks",
    "fp4",
    "gather_codes",
    "graph_diff",
    "law",
    "load_fp4",
    "load_recipe",
    "mix",
    "no_fp4",
    "pack",
    "provenance",
    "quantize",
    "quantizer",
    "quartet",
    "recipe",
    "recipes",
    "register_backend",
    "register_recipe",
    "save_recipe",
    "set_recipe",
    "stats",
    "unpack",
    "unrotated",
]
