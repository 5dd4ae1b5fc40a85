"""Train any PyTorch model with its matrix products in 4-bit floating point: `torch.compile(model, backend="quartet")`."""

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
    StrictError,
)
from .explain import explain, graph_diff
from .formats import Quantizer
from .quantized import QuantizedTensor, quantize
from .recipe import Gemm, Recipe, recipe, recipes, register_recipe
from .regions import fp4, no_fp4
from .report import Report, Site
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
    "StrictError",
    "Target",
    "cross_compile",
    "explain",
    "first_and_last_blocks",
    "fp4",
    "graph_diff",
    "no_fp4",
    "quantize",
    "quartet",
    "recipe",
    "recipes",
    "register_recipe",
]
