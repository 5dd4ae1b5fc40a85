"""Everything of a `Net` that can be compiled, and how: each function gives what is called then."""

from __future__ import annotations

import torch
from models import Net
from torch import nn

import quartet_compile as qc


def by_quartet(model, **options):
    return qc.quartet(model, **options)


def by_name(model, **options):
    return torch.compile(model, backend="quartet", options=options)


def in_place(model, **options):
    model.compile(backend="quartet", options=options)
    return model


def regions(model, **options):
    return qc.quartet(model, regions=["layers.*"], **options)


def blocks_by_name(model, **options):
    for layer in model.layers:
        layer.compile(backend="quartet", options=options)
    return model


def compiled_forward(model, **options):
    model.forward = torch.compile(model.forward, backend="quartet", options=options)
    return model


def function(model, **options):
    return qc.quartet(lambda x: model(x), **options)


def function_by_name(model, **options):
    return torch.compile(lambda x: model(x), backend="quartet", options=options)


def method(model, **options):
    return qc.quartet(model.forward, **options)


def decorated_class(model, **options):
    model.__class__ = qc.quartet(type("Decorated", (Net,), {"forward": _forward()}), **options)
    return model


def class_by_name(model, **options):
    model.__class__ = torch.compile(type("Decorated", (Net,), {}), backend="quartet", options=options)
    return model


def _forward():
    """A forward with a code of its own, so that classes don't share compilations."""

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x @ self.out

    return forward


def wrapped_by_the_user(model, **options):
    compiled = by_name(model, **options)
    return nn.Sequential(compiled)


HOW = [
    by_quartet,
    by_name,
    in_place,
    regions,
    blocks_by_name,
    compiled_forward,
    function,
    function_by_name,
    method,
    decorated_class,
    class_by_name,
    wrapped_by_the_user,
]
