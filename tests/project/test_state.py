"""What a process remembers between calls is in `quartet_compile/process.py`; and the name of a module is the module."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import pathlib
import re

import pytest

from quartet_compile.process import Process

ROOT = pathlib.Path(__file__).parents[2]
FILES = sorted(path for folder in ("quartet_compile", "passes", "kernels") for path in (ROOT / folder).rglob("*.py"))

WRITES = {
    *("add", "append", "clear", "discard", "extend", "insert", "move_to_end", "pop", "popitem", "remove", "setdefault"),
    *("update", "__setitem__", "__delitem__"),
}
"""Methods that change what they belong to."""

EMPTY = {
    *("dict", "list", "set", "Counter", "defaultdict", "deque", "OrderedDict", "count", "local", "cycle"),
    *("WeakKeyDictionary", "WeakValueDictionary", "WeakSet", "WeakIdKeyDictionary", "ContextVar"),
}
"""Calls that make something which is there to be filled."""


def module_of(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "quartet_compile" else ("quartet_compile", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def names_of(target: ast.expr) -> list[str]:
    return [node.id for node in ast.walk(target) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]


def at_the_top(tree: ast.Module) -> dict[str, ast.expr | None]:
    """The names that a module binds outside of functions, each with what it is bound to; None for functions and classes.
    What it imports has a home elsewhere."""
    found: dict[str, ast.expr | None] = {}
    todo = list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                found |= dict.fromkeys(names_of(target), node.value)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found[node.name] = None
        todo += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)] * _is_open(node)
    return found


def _is_open(node: ast.AST) -> bool:
    return isinstance(node, (ast.If, ast.For, ast.While, ast.With, ast.Try))


def root_of(node: ast.expr) -> str | None:
    """`a` of `a.b[0].c`."""
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def changed(tree: ast.Module) -> set[str]:
    """The names bound at the top that a function of the module rebinds, fills, or sets attributes of; and those that are
    bound to something empty, which is there to be filled. Caches of pure functions (`functools.cache`) are neither."""
    top = at_the_top(tree)
    found = {name for name, value in top.items() if value is not None and _is_empty(value)}
    for function in (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.Lambda))):
        own = _own(function)
        for node in ast.walk(function):
            if isinstance(node, ast.Global):
                found |= set(node.names)
            elif isinstance(node, (ast.Attribute, ast.Subscript)) and isinstance(node.ctx, (ast.Store, ast.Del)):
                found |= {root_of(node)} - own
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in WRITES:
                found |= {root_of(node.func)} - own
    return {name for name in found if name in top}


def _own(function: ast.AST) -> set[str]:
    """The names that a function and those inside of it bind themselves."""
    names = {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)}
    return names | {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def _is_empty(value: ast.expr) -> bool:
    if isinstance(value, (ast.Dict, ast.List, ast.Set)):
        return not (value.keys if isinstance(value, ast.Dict) else value.elts)
    if not isinstance(value, ast.Call):
        return False
    return ast.unparse(value.func).rpartition(".")[2] in EMPTY and not value.keywords


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_state_is_in_one_place(path):
    assert not changed(ast.parse(path.read_text()))


def test_the_one_place_says_what_each_of_its_parts_is():
    said = re.findall(r"^ *(\w+): +`?", inspect.getdoc(Process), re.MULTILINE)
    assert said == [field.name for field in dataclasses.fields(Process)]


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("_seen = {}", {"_seen"}),
        ("_seen: set[str] = set()", {"_seen"}),
        ("_local = threading.local()", {"_local"}),
        ("if True:\n    _next = itertools.count()", {"_next"}),
        ("TABLE = {1: 2}\ndef f():\n    TABLE[3] = 4", {"TABLE"}),
        ("TABLE = {1: 2}\ndef f():\n    TABLE.update(x=1)", {"TABLE"}),
        ("TABLE = {1: 2}\ndef f():\n    del TABLE[1]", {"TABLE"}),
        ("LAST = None\ndef f():\n    global LAST\n    LAST = 1", {"LAST"}),
        ("def f():\n    f.calls += 1", {"f"}),
        ("class A:\n    x = 1\ndef f():\n    A.x = 2", {"A"}),
        ("TABLE = {1: 2}\ndef f(TABLE):\n    TABLE[3] = 4", set()),
        ("TABLE = {1: 2}\ndef f():\n    return TABLE[3]", set()),
        ("TABLE = {1: 2}\nTABLE[3] = 4", set()),
        ("import sys\ndef f():\n    sys.stdout = None", set()),
    ],
)
def test_state_is_seen(code, names):
    assert changed(ast.parse(code)) == names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_has_its_name(path):
    """`import quartet_compile.x.y` gives the module y, and no function that is called the same."""
    name = module_of(path)
    module, (parent, _, last) = importlib.import_module(name), name.rpartition(".")
    assert not parent or getattr(importlib.import_module(parent), last) is module
