"""Plain matmuls: mm and addmm, `[M, K] [K, N]`."""

from __future__ import annotations

from typing import ClassVar

from torch import fx

from ..graph import aten
from ..site import MatmulSite
from . import affine
from .form import Form
from .kind import Kind


class Plain(Kind):
    """The only kind whose products of two activations are sites too: they are numbered with the others, and kept."""

    priced = True
    operands: ClassVar = {aten.mm.default: slice(0, 2), aten.addmm.default: slice(1, 3)}

    def is_site(self, node: fx.Node, weight: fx.Node | None) -> bool:
        return True

    def obstacle(self, site: MatmulSite) -> str | None:
        return affine.obstacle(site.node)

    def form(self, site: MatmulSite) -> type[Form]:
        return Form
