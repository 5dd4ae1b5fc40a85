"""Sources: every new tensor names its dtype and its device, and one file knows the addresses of tensors."""

from __future__ import annotations

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
MAKERS = {
    *("arange", "as_tensor", "empty", "empty_strided", "eye", "full", "linspace", "logspace", "normal", "ones", "rand"),
    *("randint", "randn", "range", "scalar_tensor", "tensor", "zeros"),
}
"""The functions of torch whose result has the default dtype or device where none is given."""


def makers_without_type_or_device(tree: ast.AST) -> list[str]:
    """The calls that make a tensor of the default dtype or on the default device, and those that set them."""
    found = []
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        given = {keyword.arg for keyword in call.keywords}
        if name.rpartition(".")[2] in ("set_default_dtype", "set_default_device", "set_default_tensor_type"):
            found.append(f"{call.lineno}: {ast.unparse(call)}")
        if name.startswith("torch.") and name.removeprefix("torch.") in MAKERS and not {"dtype", "device"} <= given:
            found.append(f"{call.lineno}: {ast.unparse(call)}")
        if name == "torch.where" and all(isinstance(value, ast.Constant) for value in call.args[1:]):
            found.append(f"{call.lineno}: {ast.unparse(call)}")
    return found


def sources(*folders: str) -> list[pathlib.Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def short(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", sources("kernels", "passes"), ids=short)
def test_every_new_tensor_names_its_dtype_and_device(path):
    tree = ast.parse(path.read_text())
    assert makers_without_type_or_device(tree) == []
    from_torch = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "torch"]
    assert not MAKERS & {alias.name for node in from_torch for alias in node.names}  # called by another name


@pytest.mark.parametrize("path", sources("kernels", "passes", "quartet_compile"), ids=short)
def test_addresses_are_taken_in_one_file(path):
    taken = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    compare = [
        ROOT / "quartet_compile" / name for name in ("capture/restore.py", "_compat/saved.py")
    ]  # give none to C++
    assert "data_ptr" not in taken or path in (ROOT / "kernels" / "cpu" / "arrays.py", *compare)


@pytest.mark.parametrize(
    "code, bad",
    [
        ("torch.empty(3)", True),
        ("torch.empty(3, dtype=torch.uint8)", True),
        ("torch.tensor(0.5, dtype=torch.float32)", True),
        ("torch.arange(3, device=x.device)", True),
        ("torch.where(x, 1.0, 2.0)", True),
        ("torch.set_default_device('cuda')", True),
        ("torch.where(x, 1.0, y)", False),
        ("torch.empty(3, dtype=torch.uint8, device=x.device)", False),
        ("torch.empty_like(x)", False),
        ("tl.arange(0, 3)", False),
    ],
)
def test_the_check_of_the_sources_sees(code, bad):
    assert bool(makers_without_type_or_device(ast.parse(code))) is bad
