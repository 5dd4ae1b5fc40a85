"""Train any PyTorch model with its matrix products in 4-bit floating point: `torch.compile(model, backend="quartet")`."""

from . import law
from .api import quartet
from .artifact import Artifact
from .blocks import first_and_last_blocks
from .cross_compile import CrossCompileError, cross_compile
from .errors import (
    CaptureError,
    OptionError,
    PatternError,
    QuantizerError,
    QuartetError,
    RecipeError,
    StatsError,
    StrictError,
)
from .explain import explain, graph_diff
from .formats import Quantizer, quantizer
from .presets import mix, recipe, recipes, register_recipe
from .quantized import QuantizedTensor, quantize
from .recipe import Gemm, Recipe
from .recipe_file import load_recipe, save_recipe
from .regions import fp4, no_fp4
from .report import Report, Site
from .schedule import set_recipe
from .stats import Stats, stats
from .targets import TARGETS, Target

__all__ = [
    "TARGETS",
    "Artifact",
    "CaptureError",
    "CrossCompileError",
    "Gemm",
    "OptionError",
    "PatternError",
    "Quantizer",
    "QuantizedTensor",
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
    "cross_compile",
    "explain",
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
    "register_recipe",
    "save_recipe",
    "set_recipe",
    "stats",
]
