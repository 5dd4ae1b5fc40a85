"""The arrows between the rooms: frontend -> backend -> passes -> ops -> kernels, with a few leaves below all; and torch's
private modules in the few files that are there for them. Read from the import statements."""

from __future__ import annotations

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PACKAGES = {"quartet_compile": ROOT / "quartet_compile", "passes": ROOT / "passes", "kernels": ROOT / "kernels"}
LEAVES = {"_compat", "callables", "errors", "places", "process"}
"""Modules at the top that every room may use; they use only one another."""

ROOMS = {
    "kernels": {"kernels"},
    "config": {"kernels.quantizer"},
    "report": {"config", "kernels.stats"},
    "passes": {"config", "report.report", "kernels.quantizer", "kernels.schemas", "kernels.numerics.philox"},
    "law": {"config.presets"},
    "quantized": {"kernels"},
    "backend": {"config", "report", "passes", "kernels"},
    "frontend": {"config", "passes.plan", "passes.products", "backend"},
    "capture": {"config", "report", "passes.joint", "passes.products", "backend"},
    "cross": {"config", "report", "passes.joint", "kernels.lowering", "backend", "capture"},
    "export": {
        "config",
        "report",
        "capture",
        "frontend",
        "quantized",
        "kernels.quantizer",
        "kernels.numerics.reference",
    },
    "__init__": {"config", "report", "frontend", "capture", "cross", "law", "export", "quantized", "kernels.quantizer"},
    "__main__": {"config", "capture", "cross", "law", "export"},
}
"""The rooms of the house, each after those below it, and what a room uses of them."""

PRIVATE = {
    "quartet_compile/_compat.py": "torch._",
    "kernels/lowering/inductor.py": "torch._inductor",
    "quartet_compile/cross/fake_gpu.py": (
        "torch._",
        "torch.utils._python_dispatch",
    ),  # Inductor and Triton without a GPU
    "kernels/cpu/toolchain.py": "torch._inductor",  # finds the compiler that Inductor would use
    "kernels/ops.py": "torch._check",
}
"""Files that may use private parts of torch, and which."""


def sources(*packages):
    return sorted(path for package in packages for path in PACKAGES[package].rglob("*.py"))


def module_name(path):
    """`quartet_compile.passes.show` for passes/show.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "quartet_compile" else ("quartet_compile", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path):
    """The absolute names that a file imports, wherever in the file; `from a import b` is `a.b`."""
    return names_imported(ast.parse(path.read_text()), module_name(path), path.name == "__init__.py")


def names_imported(tree, module, is_package):
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                above = parts[: len(parts) - node.level + is_package]
                base = ".".join([*above, *filter(None, [node.module])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def private_parts(tree, module, is_package):
    """Every private path `torch._x...` that a file imports or reads."""
    found = {name for name in names_imported(tree, module, is_package) if name.startswith("torch.")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            found.add(ast.unparse(node))
    return {name for name in found if name.startswith("torch.") and not inside(name, "torch.ops") and _private(name)}


def _private(name):
    return any(part.startswith("_") and not part.endswith("__") for part in name.split("."))


def inside(name, prefix):
    return name == prefix or name.startswith(prefix + ".")


def ours(path):
    """The modules of this project that a file imports, without the package's name."""
    names = {name.removeprefix("quartet_compile.") for name in imports(path) if inside(name, "quartet_compile")}
    return {name for name in names if name != "quartet_compile"}


@pytest.mark.parametrize("path", sources(*PACKAGES), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_uses_only_what_is_below_it(path):
    """Importing a part alone must not need what is above it."""
    room = room_of(module_name(path).removeprefix("quartet_compile").lstrip("."))
    used = {name for name in ours(path) if room_of(name) != room and not name.startswith(tuple(LEAVES))}
    assert not {name for name in used if not any(inside(name, part) for part in ROOMS[room])}


def room_of(name):
    return name.partition(".")[0] or "__init__"


@pytest.mark.parametrize("path", sources("kernels"), ids=lambda p: str(p.relative_to(ROOT)))
def test_kernels_know_no_graphs(path):
    assert not [name for name in imports(path) if inside(name, "torch.fx")]


@pytest.mark.parametrize("path", sources("passes"), ids=lambda p: str(p.relative_to(ROOT)))
def test_passes_know_no_triton(path):
    assert not [name for name in imports(path) if inside(name, "triton")]


def test_every_room_is_in_the_table():
    folders = {p.parent.relative_to(ROOT / "quartet_compile").parts for p in sources("quartet_compile")}
    top = {p.stem for p in (ROOT / "quartet_compile").glob("*.py")} - LEAVES
    assert {*(parts[0] for parts in folders if parts), *top, "kernels", "passes"} == set(ROOMS)


@pytest.mark.parametrize("path", sources(*PACKAGES), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_import_of_the_folders_by_their_own_names(path):
    assert not [name for name in imports(path) if inside(name, "passes") or inside(name, "kernels")]


@pytest.mark.parametrize("path", sources(*PACKAGES), ids=lambda p: str(p.relative_to(ROOT)))
def test_private_parts_of_torch_are_in_few_files(path):
    tree = ast.parse(path.read_text())
    allowed = PRIVATE.get(str(path.relative_to(ROOT)), "nothing")
    used = private_parts(tree, module_name(path), path.name == "__init__.py")
    assert not [name for name in used if not name.startswith(allowed)]


def test_every_exception_to_the_rule_is_needed():
    for name, part in PRIVATE.items():
        path = ROOT / name
        if path.exists() and name != "quartet_compile/_compat.py":
            assert any(use.startswith(part) for use in private_parts(ast.parse(path.read_text()), "x", False)), name


@pytest.mark.parametrize(
    "code, module, found",
    [
        ("import triton", "quartet_compile.passes.show", {"triton"}),
        ("from ..kernels import ops", "quartet_compile.passes.show", {"quartet_compile.kernels.ops"}),
        ("from .graph import strip", "quartet_compile.passes.show", {"quartet_compile.passes.graph.strip"}),
        ("def f():\n    from torch.fx import Node", "quartet_compile.kernels.ops", {"torch.fx.Node"}),
        ("from . import _compat", "quartet_compile.backend", {"quartet_compile._compat"}),
        ("from ...errors import X", "quartet_compile.kernels.cpu.loader", {"quartet_compile.errors.X"}),
    ],
)
def test_imports_are_read_rightly(code, module, found):
    assert names_imported(ast.parse(code), module, False) == found


@pytest.mark.parametrize(
    "code, expected",
    [
        ("import torch\ntorch._dynamo.reset()", True),
        ("from torch._ops import OpOverload", True),
        ("from torch import _C", True),
        ("torch.utils._pytree.tree_map(f, x)", True),
        ("torch.compiler.disable(f)", False),
        ("torch.ops.aten._to_copy.default", False),
        ("torch.__version__", False),
        ("self._torch", False),
    ],
)
def test_private_parts_are_seen(code, expected):
    assert bool(private_parts(ast.parse(code), "x", False)) is expected
