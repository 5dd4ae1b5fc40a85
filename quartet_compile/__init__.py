"""Train any PyTorch model with its matrix products in 4-bit floating point: `torch.compile(model, backend="quartet")`."""

import importlib.metadata as _metadata

from . import _compat, law
from .backend import backend_names as _backend_names
from .backend import register_backend
from .capture.explain import explain, graph_diff
from .config.marks import fp4, no_fp4
from .config.outer_blocks import first_and_last_blocks
from .config.presets import mix, recipe, recipes, register_recipe
from .config.recipe import Gemm, Recipe
from .config.toml import load_recipe, save_recipe
from .cross.artifact import Artifact
from .cross.cross_compile import CrossCompileError, cross_compile
from .cross.targets import TARGETS, Target
from .errors import (
    CaptureError,
    ExportError,
    OptionError,
    PatternError,
    QuantizerError,
    QuartetError,
    RecipeError,
    StatsError,
    StrictError,
)
from .frontend import watch as _watch
from .frontend.api import quartet
from .frontend.enable import disable, enable
from .frontend.set_recipe import set_recipe
from .kernels.quantizer import Quantizer, quantizer
from .quantized import QuantizedTensor, quantize
from .report.report import Report, Site
from .report.stats import Stats, stats
from .serving.export import export
from .serving.record import Exported, ExportedTensor
from .serving.state import ExportedState, export_state

_watch.install()
_compat.extend_accelerate(_backend_names)

__version__ = _metadata.version("quartet-compile")

__all__ = [
    "TARGETS",
    "Artifact",
    "CaptureError",
    "CrossCompileError",
    "ExportError",
    "Exported",
    "ExportedState",
    "ExportedTensor",
    "Gemm",
    "OptionError",
    "PatternError",
    "QuantizedTensor",
    "Quantizer",
    "QuantizerError",
    "QuartetError",
    "Recipe",
    "RecipeError",
    "Report",
    "Site",
    "Stats",
    "StatsError",
    "StrictError",
    "Target",
    "__version__",
    "cross_compile",
    "disable",
    "enable",
    "explain",
    "export",
    "export_state",
    "first_and_last_blocks",
    "fp4",
    "graph_diff",
    "law",
    "load_recipe",
    "mix",
    "no_fp4",
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
]
