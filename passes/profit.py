"""Whether low precision pays for a site on a chip: its products and what quantizes for them, each the longest of its bytes,
its matrix operations and its instructions, beside the same products in the model's dtype.

It is the arithmetic of `advise` before anything is compiled: instructions come from a table of what was compiled for three
chips. Times are lower bounds, at the share of the issue rate that kernels reach. An operand that several sites read is
quantized once, and shared evenly among them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch

from ..config.options import ALL, Policy
from ..config.recipe import Recipe
from ..errors import OptionError
from ..machines.roofline import ISSUE_SHARE, MATTERS, format_of_dtype, predict
from ..machines.targets import Target, find_target, known_chip
from .site import MatmulSite, quantized


@dataclasses.dataclass(frozen=True)
class Instructions:
    """Of a thread for each element. one: quantizes an operand; both: along its rows and its columns; again: its codes along
    the other direction. On a chip without the format's tensor cores, decode: makes an operand of codes; unrotate: ends a
    product without an epilogue."""

    one: float
    both: float
    again: float
    decode: float = 4.4
    unrotate: float = 54.4


INSTRUCTIONS: Mapping[frozenset[str], Mapping[int, Instructions]] = {
    frozenset({"mxfp4-quest", "mxfp4-sr"}): {
        90: Instructions(34.5, 27.8, 23.5),
        100: Instructions(19.4, 18.4, 11.0),
        120: Instructions(24.7, 24.1, 21.6),
    },
    frozenset({"nvfp4-rtn-4over6", "nvfp4-eden"}): {100: Instructions(96.1, 239.4, 190.0)},
    frozenset({"mxfp8"}): {100: Instructions(23.2, 53.9, 29.9)},
}
"""By a recipe's quantizers and compute capability, as `cross_compile` counts them in kernels of sm_90, sm_100 and
sm_120 (docs/gpu.md); a chip between has those of the one before it."""


@dataclasses.dataclass(frozen=True)
class Profit:
    """Predicted seconds of a site's quantized products, with what quantizes for them, and of the same in its own dtype."""

    seconds: float
    before: float
    dtype: str
    chip: str

    @property
    def pays(self) -> bool:
        """Whether it gains what matters."""
        return self.before >= MATTERS * self.seconds

    def __str__(self) -> str:
        ours, plain = _microseconds(self.seconds), _microseconds(self.before)
        return f"predicted on {self.chip}: {ours}, in {self.dtype} {plain}, forward and backward"


def _microseconds(seconds: float) -> str:
    """Of small ones two digits: "0.0 us" would say nothing."""
    value = 1e6 * seconds
    return f"{value:.1f} us" if value >= 1 else f"{value:.2g} us"


def profit(site: MatmulSite, recipe: Recipe, target: Target, readers: int = 1) -> Profit | str:
    """What a site takes on a chip; or why that isn't known. readers: the sites that read its X."""
    m, n, k = site.shape
    if not (isinstance(m, int) and isinstance(n, int) and isinstance(k, int)):
        return "its sizes are dynamic"
    if not site.kind.priced:
        return f"a {site.kind.noun(site)} has no prediction"
    dtype = site.node.meta["val"].dtype
    used = [gemm for role in quantized(site, recipe) for gemm in [getattr(recipe, role)]]
    formats = {quantizer.format for gemm in used for quantizer in (gemm.a, gemm.b)}
    names = {quantizer.name for _, gemm in recipe.gemms() for quantizer in (gemm.a, gemm.b)}
    table = next((chips for known, chips in INSTRUCTIONS.items() if names <= known), None)
    if target.amd or len(formats) != 1 or table is None:
        return f"the quantizers of {recipe.name!r} have no prediction on {target.chip}"
    counts = table[max((known for known in table if known <= target.architecture), default=min(table))]
    work = _Work(target, counts, formats.pop(), used[0].a.bits, dtype.itemsize, m, n, k)
    roles = list(quantized(site, recipe))
    spent = [work.product(role, recipe) for role in roles] + work.quantizing(roles, recipe, readers)
    own = format_of_dtype(dtype)
    sizes = dtype.itemsize * (m * k + n * k + m * n)
    plain, _ = predict(sizes, 2 * m * n * k, own, target)
    assert plain is not None  # of a chip that isn't AMD's
    name = str(dtype).removeprefix("torch.")
    return Profit(sum(spent), len(roles) * plain, name, target.chip)


@dataclasses.dataclass(frozen=True)
class _Work:
    """A site's sizes on a chip. bits: of an element of the format, scales included."""

    target: Target
    counts: Instructions
    number_format: str
    bits: float
    itemsize: int
    m: int
    n: int
    k: int

    @property
    def native(self) -> bool:
        return self.target.multiplies(self.number_format)

    def packed(self, elements: int) -> int:
        """Bytes of codes and scales."""
        return int(elements * self.bits / 8)

    def product(self, role: str, recipe: Recipe) -> float:
        """A product of two operands; without tensor cores for them, with their decoding before it."""
        m, n, k = {
            "fprop": (self.m, self.n, self.k),
            "dgrad": (self.m, self.k, self.n),
            "wgrad": (self.n, self.k, self.m),
        }[role]
        mask = m * n // 8 if role != "fprop" and recipe.trust_mask else 0
        written = self.itemsize * m * n
        if self.native:
            unit = "fp8" if self.number_format == "mxfp8" else "fp4"
            return self.time(self.packed(m * k) + self.packed(n * k) + written + mask, 2 * m * n * k, unit)
        unit = "fp8" if self.number_format == "mxfp4" and "fp8" in self.target.rates else "bf16"
        size = 1 if unit == "fp8" else 2
        decoded = [
            self.time(self.packed(each) + size * each, 0, unit, self.counts.decode * each) for each in (m * k, n * k)
        ]
        apart = mask > 0 and unit == "bf16"
        back = self.time(2 * written + mask, 0, unit, self.counts.unrotate * m * n) if apart else 0.0
        return sum(decoded) + self.time(size * (m * k + n * k) + written, 2 * m * n * k, unit) + back

    def quantizing(self, roles: list[str], recipe: Recipe, readers: int) -> list[float]:
        """What makes the operands of these roles."""
        x, w, dy = self.m * self.k, self.n * self.k, self.m * self.n
        found = []
        if "fprop" in roles:
            found += [self._fresh(x, recipe.trust_mask) / readers, self._fresh(w, recipe.trust_mask)]
        backward = [role for role in roles if role != "fprop"]
        if len(backward) == 2:
            moved = self.itemsize * dy + 2 * self.packed(dy)
            found.append(self.time(moved, 0, "fp4", self.counts.both * dy))
        elif backward:
            found.append(self._fresh(dy, False))
        for role, elements, source in (("dgrad", w, recipe.w_from), ("wgrad", x, recipe.x_from)):
            if role in roles and source != "codes":
                taken = self.packed(elements) if source == "requantized" else self.itemsize * elements
                found.append(self.time(taken + self.packed(elements), 0, "fp4", self.counts.again * elements))
        return found

    def _fresh(self, elements: int, mask: bool) -> float:
        moved = self.itemsize * elements + self.packed(elements) + (elements // 8 if mask else 0)
        return self.time(moved, 0, "fp4", self.counts.one * elements)

    def time(self, moved: int, operations: int, unit: str, instructions: float = 0.0) -> float:
        seconds, _ = predict(moved, operations, unit, self.target, round(instructions), ISSUE_SHARE)
        assert seconds is not None
        return seconds


def chip_of(policy: Policy, device: torch.device) -> Target | None:
    """The chip that `policy="profitable"` is about: the one that it names, or that of this device. None for another policy.

    Raises `OptionError` where none is named and the device is none whose rates are known.
    """
    if policy.policy == ALL:
        return None
    _, _, name = policy.policy.partition(":")
    if name:
        return find_target(name)
    chip = None
    if device.type == "cuda":
        chip = known_chip(torch.cuda.get_device_capability(device), torch.cuda.get_device_name(device))
    if chip is None:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"the device {str(device)!r}"
        raise OptionError(
            f"policy='profitable' needs the rates of the GPU that the model is on, and {name} is none whose rates are "
            "known. Name a chip to decide for, as policy='profitable:b200', or leave the option out."
        )
    return chip
