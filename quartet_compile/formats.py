"""Number formats and quantizers, as data.

A `Quantizer` says how one operand of a GEMM becomes low-precision blocks: rotate each group along the contraction
dimension, choose a scale per group, round the elements. Everything that a kernel needs to know is a field of it; a new
quantizer is a new value, not new code.

The quantizers here are those of "Quartet: Native FP4 Training Can Be Optimal for Large Language Models"
(arXiv 2505.14669): QuEST in the forward pass (section 4.2), absmax with the 3/4 rule in the backward pass (section 4.3).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from types import MappingProxyType

from .errors import QuantizerError, suggest

E2M1_VALUES: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Magnitude of each 3-bit E2M1 code; bit 3 of a code is the sign (OCP Microscaling Formats v1.0, table 5)."""

E2M1_MAX = 6.0
E8M0_NAN = 255
"""The E8M0 byte of a group that holds a NaN or an infinity; byte `b` below it is the scale 2^(b - 127)."""

QUEST_GAUSSIAN_CLIP = 2.92247856
"""The clipping point, in standard deviations, with the least squared error of 4-bit levels on a Gaussian (QuEST)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantizer:
    """How one operand, `[rows, columns]` with the contraction along the columns, is quantized.

    elements: `"e2m1"` (4-bit float, two codes a byte, low nibble first), or `"float32"`, which rounds nothing.
    group:    columns that share one scale.
    rotation: size of the Hadamard blocks along the columns, 0 for none. The rotation is `x @ (diag(s) @ H)` with `H` the
              Sylvester matrix over sqrt(size).
    random_signs: the signs `s` are drawn for each GEMM (both of its operands share them); else they are all +1.
    scale:    `"quest"` (a multiple of the group's standard deviation) or `"absmax"`; both are rounded down to a power
              of two and stored as E8M0.
    shrink:   elements are multiplied by it before rounding, and `dequantize` divides by it: with `absmax`, 3/4 keeps
              every scaled value below 6, so nothing clips.
    rounding: `"nearest"` (ties to even) or `"stochastic"` (16 random bits an element).
    """

    elements: str = "e2m1"
    group: int = 32
    rotation: int = 32
    random_signs: bool = False
    scale: str = "absmax"
    shrink: float = 1.0
    rounding: str = "nearest"

    def __post_init__(self) -> None:
        for field, allowed in _ALLOWED.items():
            value = getattr(self, field)
            if value not in allowed:
                raise QuantizerError(
                    f"Quantizer field {field!r} is {value!r}; expected one of {', '.join(map(repr, allowed))}."
                )
        if self.random_signs and not self.rotation:
            raise QuantizerError(
                "Quantizer has random_signs=True but rotation=0; signs belong to a rotation: set rotation=32."
            )
        if self.exact and (self.shrink != 1.0 or self.stochastic):
            raise QuantizerError(
                f"Quantizer has elements='float32', which rounds nothing, with shrink={self.shrink} and "
                f"rounding={self.rounding!r}; expected shrink=1.0 and rounding='nearest'. Leave both out."
            )
        if self.scale == "quest" and self.rounding == "stochastic":
            raise QuantizerError(
                "Quantizer combines scale='quest' with rounding='stochastic': QuEST clips, so the result would be "
                "biased. Use scale='absmax', shrink=0.75 for stochastic rounding."
            )
        if self.rounding == "stochastic" and self.shrink != 0.75:
            raise QuantizerError(
                f"Quantizer has rounding='stochastic' with shrink={self.shrink}: scaled values reach 8 and clip at 6, "
                "so the result would be biased. Use shrink=0.75."
            )

    @property
    def stochastic(self) -> bool:
        """Whether rounding draws random bits."""
        return self.rounding == "stochastic"

    @property
    def seeded(self) -> bool:
        """Whether the result depends on a seed (noise, signs or both)."""
        return self.stochastic or self.random_signs

    @property
    def exact(self) -> bool:
        """Whether nothing is rounded: `codes` are then the rotated float32 values."""
        return self.elements == "float32"

    @property
    def clips(self) -> bool:
        """Whether elements may saturate, so that a trust mask has zeros."""
        return self.scale == "quest" and not self.exact

    @property
    def gain(self) -> float:
        """What a product must be multiplied by to undo `shrink`."""
        return 1.0 / self.shrink

    @property
    def name(self) -> str:
        """The registered name, or the text that `quantizer()` reads back."""
        for name, known in QUANTIZERS.items():
            if known == self:
                return name
        return ",".join(f"{f.name}={getattr(self, f.name)}" for f in dataclasses.fields(self))


_ALLOWED: Mapping[str, tuple] = MappingProxyType(
    {
        "elements": ("e2m1", "float32"),
        "group": (32,),
        "rotation": (0, 32),
        "random_signs": (False, True),
        "scale": ("absmax", "quest"),
        "shrink": (1.0, 0.75),
        "rounding": ("nearest", "stochastic"),
    }
)

QUANTIZERS: Mapping[str, Quantizer] = MappingProxyType(
    {
        "mxfp4-quest": Quantizer(scale="quest"),
        "mxfp4-rtn": Quantizer(random_signs=True, shrink=0.75),
        "mxfp4-sr": Quantizer(random_signs=True, shrink=0.75, rounding="stochastic"),
        "exact-fixed": Quantizer(elements="float32"),
        "exact-random": Quantizer(elements="float32", random_signs=True),
    }
)
"""Every registered quantizer by name. The two `exact` ones rotate and round nothing: they test the pass itself."""


@functools.cache
def quantizer(name: str) -> Quantizer:
    """The quantizer with this registered name, or the one that `Quantizer.name` wrote. Raises `QuantizerError`."""
    if name in QUANTIZERS:
        return QUANTIZERS[name]
    if "=" in name:
        return _parse(name)
    raise QuantizerError(
        f"Unknown quantizer {name!r}{suggest(name, QUANTIZERS)}. Registered: {', '.join(QUANTIZERS)}; "
        "or pass a quartet_compile.Quantizer(...)."
    )


def _parse(text: str) -> Quantizer:
    fields = {f.name: f.type for f in dataclasses.fields(Quantizer)}
    read = {"str": str, "int": int, "float": float, "bool": {"True": True, "False": False}.__getitem__}
    values = {}
    for item in text.split(","):
        key, _, value = item.partition("=")
        if key not in fields:
            raise QuantizerError(f"Unknown quantizer field {key!r} in {text!r}; the fields are {', '.join(fields)}.")
        try:
            values[key] = read[fields[key]](value)
        except (KeyError, ValueError):
            allowed = ", ".join(map(str, _ALLOWED[key]))
            raise QuantizerError(f"Quantizer field {key!r} is {value!r} in {text!r}; expected {allowed}.") from None
    return Quantizer(**values)


def padded(size, multiple: int):
    """`size` rounded up to a multiple; also for symbolic sizes."""
    return (size + multiple - 1) // multiple * multiple
