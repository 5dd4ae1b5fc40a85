"""Number formats and quantizers, as data.

A `Quantizer` says how one operand of a GEMM becomes low-precision blocks: rotate along the contraction dimension, choose a
scale per group, round the elements. Everything that a kernel needs to know is a field of it; a new quantizer is a new
value, not new code.

Sources: "Quartet" (arXiv 2505.14669), sections 4.2 and 4.3, for `mxfp4-*`; "Quartet II" (arXiv 2601.22813) for
`nvfp4-*`; OCP Microscaling Formats v1.0 for MXFP4 and MXFP8.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from ..errors import QuantizerError, suggest
from .operand_formats import format_with

E2M1_VALUES: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Magnitude of each 3-bit E2M1 code; bit 3 of a code is the sign (OCP Microscaling Formats v1.0, table 5)."""

E2M1_MAX = 6.0
E4M3_MAX = 448.0
E8M0_NAN = 255
"""The E8M0 byte of a group that holds a NaN or an infinity; byte `b` below it is the scale 2^(b - 127)."""
E4M3_NAN = 0x7F

QUEST_GAUSSIAN_CLIP = 2.92247856
"""The clipping point, in standard deviations, with the least squared error of 4-bit levels on a Gaussian (QuEST)."""

STOCHASTIC_HEADROOM = 17 / 16
"""E4M3 rounds a scale down by at most 1/17 of it: with 16/17 of the range, no value clips."""

CHOICES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "elements": MappingProxyType(
            {
                "e2m1": "4-bit float, two codes a byte, the low nibble first",
                "e4m3": "8-bit float",
                "float32": "nothing is rounded",
            }
        ),
        "scale_format": MappingProxyType(
            {
                "e8m0": "a power of two a group",
                "e4m3": "an 8-bit float a group, rounded to nearest, and one float32 a tensor",
            }
        ),
        "scale": MappingProxyType(
            {
                "absmax": "the largest magnitude of the group",
                "quest": "a multiple of the group's standard deviation",
                "four-over-six": "of those that bring the largest to 6 and to 4, the one with the smaller squared error",
            }
        ),
        "scale_rounding": MappingProxyType(
            {
                "down": "to the power of two below",
                "nearest": "to the nearest in the logarithm",
                "up": "to the power of two above; under `absmax`, to the least that clips nothing",
                "error": "down or one above, by squared error",
                "even": "to the power of two of the largest, once that is rounded to the elements' mantissa (`absmax`)",
            }
        ),
        "rounding": MappingProxyType(
            {
                "nearest": "ties to even",
                "stochastic": "up or down, by `noise_bits` random bits an element",
                "eden": "to nearest, then group scales that make the rotation's block unbiased, stochastically (MS-EDEN)",
            }
        ),
    }
)
"""The named choices of a quantizer, by field, and what each means. A backend declares which of them it knows and refuses
the others (`support.py`)."""

SIZES: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {"group": (16, 32), "group_rows": (1, 16, 32), "rotation": (0, 16, 32, 64, 128), "noise_bits": (8, 16)}
)
"""The sizes that a quantizer can have, by field; backends declare those too."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantizer:
    """How one operand, `[rows, columns]` with the contraction along the columns, is quantized.

    elements, scale_format, scale, scale_rounding, rounding: entries of `CHOICES`, which says what each means.
    group:    columns that share one scale.
    group_rows: rows that share it too: 1, or as many as `group` for square blocks, whose transpose is quantized alike.
    rotation: size of the Hadamard blocks along the columns, 0 for none. The rotation is `x @ (diag(s) @ H)` with `H` the
              Sylvester matrix over sqrt(size).
    random_signs: the signs `s` are drawn for each GEMM (both of its operands share them); else they are all +1.
    shrink:   elements are multiplied by it before rounding, and `dequantize` divides by it: with `absmax` rounded down,
              3/4 keeps every scaled value below 6, so nothing clips (rounded to nearest, they stay below 5.66 anyway).
              With E8M0 scales only.
    headroom: a group's largest is brought to 6 / headroom. With E4M3 scales only.
    largest_scale: the group scale of the tensor's largest value. With E4M3 scales only.
    noise_bits: random bits an element under stochastic rounding, 8 or 16: the expectation of an element is exact to
              half a unit of the last of them, 1/512 or 1/131072 of a step of the grid, to both sides alike.
    """

    elements: str = "e2m1"
    group: int = 32
    group_rows: int = 1
    rotation: int = 32
    random_signs: bool = False
    scale_format: str = "e8m0"
    scale: str = "absmax"
    scale_rounding: str = "down"
    shrink: float = 1.0
    headroom: float = 1.0
    largest_scale: float = E4M3_MAX
    rounding: str = "nearest"
    noise_bits: int = 8

    def __post_init__(self) -> None:
        for field, allowed in allowed_values().items():
            value = getattr(self, field)
            wrong_type = isinstance(value, bool) != isinstance(allowed[0], bool) or (
                isinstance(value, float) and isinstance(allowed[0], int)
            )
            if value not in allowed or wrong_type:
                raise QuantizerError(
                    f"Quantizer field {field!r} is {value!r}; expected one of {', '.join(map(repr, allowed))}."
                )
        for field, (low, high) in _RANGES.items():
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                raise QuantizerError(f"Quantizer field {field!r} is {value!r}; expected a number from {low} to {high}.")
        for wrong, message in _contradictions(self):
            if wrong:
                raise QuantizerError(f"Quantizer {message}")

    @property
    def block(self) -> int:
        """Columns that are quantized together: operands are padded with zeros to a multiple of it."""
        return max(self.group, self.rotation)

    @property
    def stochastic(self) -> bool:
        """Whether elements are rounded by random bits."""
        return self.rounding == "stochastic"

    @property
    def noisy(self) -> bool:
        """Whether anything, elements or scales, is rounded by random bits."""
        return self.rounding != "nearest"

    @property
    def seeded(self) -> bool:
        """Whether the result depends on a seed (noise, signs or both)."""
        return self.noisy or self.random_signs

    @property
    def exact(self) -> bool:
        """Whether nothing is rounded: `codes` are then the rotated float32 values."""
        return self.elements == "float32"

    @property
    def two_level(self) -> bool:
        """Whether group scales are relative to a scale of the whole tensor."""
        return self.scale_format == "e4m3"

    @property
    def format(self) -> str:
        """Name of the number format that codes and scales are in (`kernels/operand_formats.py`)."""
        return format_with(self.elements, self.scale_format)

    @property
    def square(self) -> bool:
        """Whether blocks are square, so that codes can be used transposed as they are."""
        return self.group_rows == self.group

    @property
    def clips(self) -> bool:
        """Whether elements saturate by design, so that a trust mask has zeros; E4M3 elements have none."""
        if self.exact or self.two_level or self.elements == "e4m3":
            return False
        return self.scale == "quest" or not self._fits

    @property
    def _fits(self) -> bool:
        """Whether a scale from the largest of a group leaves all of it within the grid."""
        return self.scale_rounding in ("up", "nearest") or (self.scale_rounding == "down" and self.shrink == 0.75)

    @property
    def unbiased(self) -> bool:
        """Whether the expectation over noise and signs is the input: exactly, or for EDEN as its block grows."""
        return self.exact or self.noisy

    @property
    def unrotated(self) -> Quantizer:
        """The same without the rotation."""
        return dataclasses.replace(self, rotation=0, random_signs=False)

    @property
    def bits(self) -> float:
        """Bits an element as it is stored, scales included; 32 for what rounds nothing."""
        if self.exact:
            return 32.0
        return (4 if self.elements == "e2m1" else 8) + 8 / self.group

    @property
    def gain(self) -> float:
        """What a product must be multiplied by to undo `shrink`."""
        return 1.0 / self.shrink

    @property
    def name(self) -> str:
        """The registered name, or the nearest one and the fields that differ: `"mxfp4-sr,rotation=64"`."""
        return _name(self)


def _contradictions(q: Quantizer) -> list[tuple[bool, str]]:
    """What can't be combined, and what is said of it."""
    rounds = f"rounding={q.rounding!r}"
    return [
        (
            q.random_signs and not q.rotation,
            "has random_signs=True but rotation=0; signs belong to a rotation: set rotation=32.",
        ),
        (
            q.exact and (q.shrink != 1.0 or q.noisy),
            f"has elements='float32', which rounds nothing, with shrink={q.shrink} and {rounds}; expected shrink=1.0 and "
            "rounding='nearest'. Leave both out.",
        ),
        (
            q.exact and (q.two_level or q.group_rows != 1),
            "has elements='float32', which has no scales, with scale_format='e4m3' or group_rows; leave them out.",
        ),
        (
            q.two_level and q.elements != "e2m1",
            f"has scale_format='e4m3' with elements={q.elements!r}; E4M3 scales are those of NVFP4: set elements='e2m1'.",
        ),
        (
            not q.exact and q.two_level != (q.group == 16),
            f"has group={q.group} with scale_format={q.scale_format!r}; expected group=16 with 'e4m3' (NVFP4) and group=32 "
            "with 'e8m0' (MX formats).",
        ),
        (
            q.elements == "e4m3" and (q.scale != "absmax" or q.noisy or q.shrink != 1.0),
            f"has elements='e4m3' with scale={q.scale!r}, shrink={q.shrink} and {rounds}; MXFP8 has scale='absmax', "
            "shrink=1.0 and rounding='nearest'.",
        ),
        (
            q.scale == "quest" and (q.two_level or q.noisy),
            f"combines scale='quest' with scale_format={q.scale_format!r} and {rounds}: QuEST clips, so random rounding "
            "would be biased, and its scales are powers of two. Use scale='absmax', shrink=0.75 for stochastic rounding.",
        ),
        (
            q.scale == "quest" and q.shrink != 1.0,
            f"combines scale='quest' with shrink={q.shrink}; QuEST chooses its clipping point itself: set shrink=1.0.",
        ),
        (
            q.scale == "four-over-six" and not q.two_level,
            "has scale='four-over-six' with E8M0 scales, which can't be multiplied by 1.5; set scale_format='e4m3'.",
        ),
        (
            q.scale == "four-over-six" and q.noisy,
            f"combines scale='four-over-six' with {rounds}: the choice of the scale depends on the values, so the result "
            "is biased (averaged gradients stop at a relative squared error of .11, arXiv 2601.22813). Use scale='absmax'.",
        ),
        (
            not q.exact and not q.two_level and q.noisy and not q._fits,
            f"has {rounds} with shrink={q.shrink} and scale_rounding={q.scale_rounding!r}: scaled values "
            "clip at 6, so the result would be biased. Use shrink=0.75 and scale_rounding='down'.",
        ),
        (
            q.noise_bits != 8 and not q.stochastic,
            f"has noise_bits={q.noise_bits} with {rounds}; elements take random bits under stochastic rounding only: leave "
            "noise_bits out, or set rounding='stochastic'.",
        ),
        (
            q.scale_rounding == "even" and q.scale != "absmax",
            f"has scale_rounding='even' with scale={q.scale!r}; it rounds the largest of a group as an element: set "
            "scale='absmax'.",
        ),
        (
            q.scale_rounding == "error" and (q.shrink != 1.0 or q.noisy or q.elements != "e2m1" or q.two_level),
            "has scale_rounding='error', which is for E8M0 scales of E2M1 elements to nearest, unshrunk: leave out shrink, "
            "rounding and scale_format.",
        ),
        (
            q.two_level and q.stochastic and q.headroom < STOCHASTIC_HEADROOM,
            f"has rounding='stochastic' with headroom={q.headroom}: where E4M3 rounds a scale down, values clip at 6, so "
            "the result would be biased. Use headroom=17/16.",
        ),
        (
            q.rounding == "eden" and not q.random_signs,
            "has rounding='eden' without random_signs: its correction is unbiased over random rotations only; set "
            "rotation=128, random_signs=True.",
        ),
        (
            q.rounding == "eden" and q.rotation < q.group,
            f"has rounding='eden' with rotation={q.rotation} and group={q.group}; expected a rotation of a whole group or "
            "more: set rotation=128.",
        ),
        (
            q.group_rows not in (1, q.group),
            f"has group_rows={q.group_rows} with group={q.group}; expected 1, or {q.group} for square blocks.",
        ),
        (
            q.group_rows != 1 and bool(q.rotation),
            f"has square blocks with rotation={q.rotation}: a rotation runs along one side, and the transpose would need "
            "the other. Set rotation=0 or group_rows=1.",
        ),
        (
            q.group_rows != 1 and (q.scale == "quest" or q.scale_rounding == "error"),
            "has square blocks with scale='quest' or scale_rounding='error', which look at one row; use scale='absmax'.",
        ),
        (
            q.two_level and (q.shrink != 1.0 or q.scale_rounding != "down"),
            f"has shrink={q.shrink} and scale_rounding={q.scale_rounding!r}, which are for E8M0 scales; with "
            "scale_format='e4m3' leave them out (headroom is what shrink is there).",
        ),
        (
            not q.two_level and (q.headroom != 1.0 or q.largest_scale != E4M3_MAX),
            f"has headroom={q.headroom} and largest_scale={q.largest_scale}, which are for E4M3 scales; with "
            "scale_format='e8m0' leave them out (shrink is what headroom is there).",
        ),
        (
            q.scale == "four-over-six" and q.largest_scale * 1.5 > E4M3_MAX,
            f"has scale='four-over-six' with largest_scale={q.largest_scale}: 1.5 times it is beyond E4M3's 448; set "
            "largest_scale=256.",
        ),
    ]


def allowed_values() -> dict[str, tuple[Any, ...]]:
    """The values of each field that has a few."""
    choices = {field: tuple(names) for field, names in CHOICES.items()}
    return {**choices, **SIZES, "random_signs": (False, True), "shrink": (1.0, 0.75)}


_RANGES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {"headroom": (0.75, 1.5), "largest_scale": (1.0, E4M3_MAX)}
)


def _nvfp4(**fields: Any) -> Quantizer:
    return Quantizer(**{"group": 16, "rotation": 0, "scale_format": "e4m3", **fields})


_EDEN: dict[str, Any] = dict(random_signs=True, rounding="eden")

QUANTIZERS: Mapping[str, Quantizer] = MappingProxyType(
    {
        "mxfp4-quest": Quantizer(scale="quest"),
        "mxfp4-rtn": Quantizer(random_signs=True, shrink=0.75),
        "mxfp4-sr": Quantizer(random_signs=True, shrink=0.75, rounding="stochastic"),
        "mxfp4-eden": Quantizer(rotation=128, shrink=0.75, **_EDEN),
        "mxfp4-rtn-2d": Quantizer(group_rows=32, rotation=0, scale_rounding="up"),
        "nvfp4-rtn": _nvfp4(),
        "nvfp4-rtn-4over6": _nvfp4(scale="four-over-six", largest_scale=256.0),
        "nvfp4-rtn-2d": _nvfp4(group_rows=16),
        "nvfp4-rtn-2d-4over6": _nvfp4(group_rows=16, scale="four-over-six", largest_scale=256.0),
        "nvfp4-sr": _nvfp4(rounding="stochastic", headroom=STOCHASTIC_HEADROOM),
        "nvfp4-eden": _nvfp4(rotation=128, headroom=STOCHASTIC_HEADROOM * 0.93, largest_scale=255.99, **_EDEN),
        "mxfp8": Quantizer(elements="e4m3", rotation=0, scale_rounding="up"),
        "exact-fixed": Quantizer(elements="float32"),
        "exact-random": Quantizer(elements="float32", random_signs=True),
    }
)
"""Every registered quantizer by name. The two `exact` ones rotate and round nothing: they test the pass itself."""

_FIELDS = {field.name: field.type for field in dataclasses.fields(Quantizer)}


@functools.cache
def _name(q: Quantizer) -> str:
    def differing(known: Quantizer) -> list[str]:
        return [f"{field}={getattr(q, field)}" for field in _FIELDS if getattr(q, field) != getattr(known, field)]

    base = min(QUANTIZERS, key=lambda name: len(differing(QUANTIZERS[name])))
    return ",".join([base, *differing(QUANTIZERS[base])])


@functools.cache
def quantizer(name: str) -> Quantizer:
    """The quantizer with this registered name, with fields changed if the name says so (`"mxfp4-sr,rotation=64"`), or
    with the fields given (`"group=32,scale=quest"`). Raises `QuantizerError`."""
    base, *changes = [item.strip() for item in name.split(",")]
    if base in QUANTIZERS and not changes:
        return QUANTIZERS[base]
    if base in QUANTIZERS:
        return dataclasses.replace(QUANTIZERS[base], **_values(changes, name))
    if "=" in base:
        return Quantizer(**_values([base, *changes], name))
    raise QuantizerError(
        f"Unknown quantizer {name!r}{suggest(base, QUANTIZERS)}. Registered: {', '.join(QUANTIZERS)}; "
        "or pass a quartet_compile.Quantizer(...). A recipe has several: print(quartet_compile.recipe('quartet'))."
    )


def _values(items: list[str], text: str) -> dict[str, Any]:
    read: dict[Any, Callable[[str], object]] = {
        "str": str,
        "int": int,
        "float": float,
        "bool": {"True": True, "False": False}.__getitem__,
    }
    values = {}
    for item in items:
        key, _, value = item.partition("=")
        if key not in _FIELDS:
            raise QuantizerError(
                f"Unknown quantizer field {key!r} in {text!r}{suggest(key, _FIELDS)}; the fields are {', '.join(_FIELDS)}."
            )
        try:
            values[key] = read[_FIELDS[key]](value)
        except (KeyError, ValueError):
            allowed = ", ".join(map(str, allowed_values().get(key, ("a number",))))
            raise QuantizerError(f"Quantizer field {key!r} is {value!r} in {text!r}; expected {allowed}.") from None
    return values


def padded(size: Any, multiple: int) -> Any:
    """`size` rounded up to a multiple; also for symbolic sizes."""
    return (size + multiple - 1) // multiple * multiple
