"""A compiled model has the signature of its forward: trainers choose the columns of a batch by it."""

from __future__ import annotations

import inspect

import pytest
import torch
from ways_in import by_name, by_quartet

from quartet_compile.errors import CompilerError
from quartet_compile.kernels.cpu import toolchain


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Linear(64, 64)

    def forward(self, input_ids, *, labels=None):
        return self.body(input_ids)

    def other(self, x):
        return self.body(x)


@pytest.mark.parametrize("how", [by_name, by_quartet], ids=lambda how: how.__name__)
def test_the_forward_of_a_compiled_model(how):
    assert list(inspect.signature(how(Model()).forward).parameters) == ["input_ids", "labels"]


def test_another_method_keeps_its_own():
    assert list(inspect.signature(torch.compile(Model().other, backend="quartet")).parameters) == ["x"]


def test_no_compiler_while_training_is_our_error(monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(toolchain._compat, "cpp_compiler", lambda: None)
    with pytest.raises(CompilerError, match="Install g\\+\\+"):
        torch.compile(Model(), backend="quartet")(torch.randn(32, 64)).sum().backward()
