"""The weights of a model that matmuls read: their names, and which way they lie."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import nn

from ..callables import is_transposed
from .names import clean


@dataclasses.dataclass(frozen=True)
class Weight:
    """A parameter that a matmul reads. turned: its inputs are its rows, as `[..., K, N]`; None where nothing says it."""

    name: str
    module: nn.Module
    attribute: str
    turned: bool | None

    @property
    def tensor(self) -> torch.Tensor:
        tensor: torch.Tensor = self.module._parameters[self.attribute]  # type: ignore[assignment]
        return tensor

    @property
    def names(self) -> tuple[str, ...]:
        """What patterns see."""
        return tuple(name for name in (self.name.rpartition(".")[0], self.name) if name)

    @property
    def shape(self) -> tuple[int, ...]:
        """`[..., N, K]`."""
        shape = tuple(self.tensor.shape)
        return (*shape[:-2], shape[-1], shape[-2]) if self.turned else shape


def weights_of(model: nn.Module) -> Iterator[Weight]:
    """The parameters with two or more dimensions, of modules that may multiply by them."""
    for path, module in model.named_modules():
        for attribute, parameter in module._parameters.items():
            if parameter is not None and parameter.dim() > 1 and not isinstance(module, nn.Embedding):
                name = clean(f"{path}.{attribute}" if path else attribute)
                yield Weight(name, module, attribute, _turned(module, attribute, parameter))


def _turned(module: nn.Module, attribute: str, parameter: torch.Tensor) -> bool | None:
    if isinstance(module, nn.Linear) and attribute == "weight":
        return False
    says = parameter.dim() == 3 or (attribute == "weight" and not hasattr(module, "is_transposed"))
    return is_transposed(module) if says else None
