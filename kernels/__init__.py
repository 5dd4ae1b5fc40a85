"""Kernels and the ops over them. Importing this package registers `torch.ops.quartet`."""

from . import ops, stats  # noqa: F401
