"""The arrows between the rooms: frontend -> backend -> passes -> ops -> kernels, with a few leaves below all; and torch's
private modules in the few files that are there for them. Read from the import statements."""

from __future__ import annotations

import ast
import functools
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PACKAGES = {"quartet_compile": ROOT / "quartet_compile", "passes": ROOT / "passes", "kernels": ROOT / "kernels"}
LEAVES = {
    "_compat",
    "callables",
    "debug",
    "errors",
    "held",
    "optional",
    "places",
    "process",
    "progress",
    "tables",
    "warn",
}
"""Modules at the top that every room may use; they use only one another."""

ROOMS = {
    "kernels": {"kernels"},
    "machines": set(),
    "config": {"kernels.quantizer", "machines"},
    "report": {"config", "kernels.stats"},
    "passes": {
        "config",
        "machines",
        "report.report",
        "kernels.quantizer",
        "kernels.operand_formats",
        "kernels.schemas",
        "kernels.numerics.philox",
    },
    "law": {"config.presets", "config.recipe"},
    "quantized": {"kernels"},
    "ranks": {"config"},
    "backend": {"config", "report", "passes", "kernels", "ranks"},
    "compiled": {"config"},
    "gathers": {
        "config",
        "kernels.numerics.philox",
        "kernels.operand_formats",
        "kernels.quantizer",
        "passes.plan",
        "passes.products.kind",
        "ranks",
        "report.report",
    },
    "frontend": {
        "config",
        "compiled",
        "report",
        "passes.plan",
        "passes.products",
        "passes.weights",
        "kernels.paths",
        "backend",
        "gathers",
        "ranks",
    },
    "origin": {"config", "compiled"},
    "callbacks": {
        "config",
        "compiled",
        "report",
        "frontend",
        "origin",
        "ranks",
        "passes.inputs",
        "passes.joint",
        "kernels.lowering",
    },
    "capture": {"config", "compiled", "report", "passes.joint", "passes.products", "backend", "gathers.fsdp"},
    "cross": {
        "config",
        "machines",
        "report",
        "passes.joint",
        "kernels.lowering",
        "kernels.library",
        "backend",
        "capture",
    },
    "advice": {
        "config",
        "compiled",
        "report",
        "frontend.api",
        "kernels.paths",
        "passes.plan",
        "cross",
        "law",
        "machines",
    },
    "serving": {
        "config",
        "compiled",
        "report",
        "capture",
        "quantized",
        "kernels.quantizer",
        "kernels.numerics.reference",
    },
    "packed": {
        "config",
        "quantized",
        "kernels.quantizer",
        "passes.plan",
        "passes.products.kind",
        "serving.source",
    },
    "__init__": {
        "config",
        "report",
        "backend",
        "frontend",
        "gathers",
        "capture",
        "cross",
        "law",
        "machines",
        "packed",
        "serving",
        "quantized",
        "origin",
        "callbacks",
        "advice",
        "kernels",
    },
    "doctor": {"kernels", "frontend.said"},
    "__main__": {"config", "capture", "cross", "law", "machines", "serving", "advice", "doctor"},
}
"""The rooms of the house, each after those below it, and what a room uses of them."""

FENCE = "quartet_compile/_compat/"
"""The folder that knows the private parts of torch."""

PRIVATE = {"kernels/lowering/inductor.py": "torch._inductor"}
"""The other file that may use private parts of torch, and which."""

NOT_THEIRS = {"_asdict", "_field_defaults", "_fields", "_replace", "_getframe", "_CFuncPtr", "_SubParsersAction"}
"""Attributes with an underscore that are Python's, and public."""

ELSEWHERE = ("aten.", "_aten.", "torch.")
"""Operators, of which some have a name with an underscore, and the paths of modules, of which `PRIVATE` decides."""

WORDS = {
    *("ac_graph_id", "example_value", "from_node", "fwd_nn_module_stack", "fwd_source_fn_stack", "grapharg"),
    *(
        "has_backward_hook",
        "nn_module_stack",
        "partitioner_tag",
        "seq_nr",
        "source_fn_stack",
        "grad_of",
        "mutated_input",
    ),
    *("is_forward", "is_backward", "must_be_in_backward", "compiler_name", "real_stack", "is_infra_mode"),
}
"""Keys, values and attributes of torch's that are private without an underscore. Of `meta` only `val` may be used."""

TEXTS = ("_torchdynamo", "torch_dynamo_resume", "_orig_mod", "_fsdp_wrapped", "_checkpoint_wrapped", "__import_", "L[")
TEXTS = (*TEXTS, "._parameters", "._buffers", "._modules", "eval_with_key", "Graph Break Reason", "graph break in loop")
"""Parts of what Dynamo writes."""


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


def private_words(tree, own):
    """Every private name of torch's that a file reads as an attribute, as a key of a node's `meta`, or as a text; `own`: the
    attributes with an underscore that are ours."""
    documented = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            ours = node.attr in own | NOT_THEIRS or ast.unparse(node).startswith(ELSEWHERE)
            found |= {node.attr} if (_private(node.attr) and not ours) or node.attr in WORDS else set()
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented:
            named = node.value in WORDS or any(text in node.value for text in TEXTS)
            found |= {node.value} if named else set()
        found |= set(_keys_of_meta(node)) - {"val"}
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr", "delattr"):
            name = getattr(node.args[1], "value", None)
            found |= {name} if isinstance(name, str) and _private(name) and name not in own else set()
    return found


def _keys_of_meta(node):
    """The constant keys with which an expression reads or writes `meta`."""
    keys, meta = [], None
    if isinstance(node, ast.Subscript):
        keys, meta = [node.slice], node.value
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
        keys, meta = node.args[:1], node.func.value
    elif isinstance(node, ast.Compare):
        keys, meta = [node.left], node.comparators[0]
    if meta is not None and ast.unparse(meta).rpartition(".")[2] == "meta":
        return [
            key.value for key in keys if isinstance(key, ast.Constant) and key.value.islower()
        ]  # Triton's are capitals
    return []


@functools.cache
def own_attributes():
    """The attributes with an underscore that the sources define: methods, fields, what they assign, `_quartet_...`."""
    found = set()
    for path in sources(*PACKAGES):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                if ast.unparse(node.value) == "self" or node.attr.startswith("_quartet"):
                    found.add(node.attr)
            elif isinstance(node, ast.keyword) and (node.arg or "").startswith("_quartet"):
                found.add(node.arg)
    return found


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
    top = {p.stem for p in (ROOT / "quartet_compile").glob("*.py")}
    assert {*(parts[0] for parts in folders if parts), *top, "kernels", "passes"} - LEAVES == set(ROOMS)


@pytest.mark.parametrize("path", sources(*PACKAGES), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_import_of_the_folders_by_their_own_names(path):
    assert not [name for name in imports(path) if inside(name, "passes") or inside(name, "kernels")]


@pytest.mark.parametrize("path", sources(*PACKAGES), ids=lambda p: str(p.relative_to(ROOT)))
def test_private_parts_of_torch_are_in_few_files(path):
    tree, name = ast.parse(path.read_text()), str(path.relative_to(ROOT))
    allowed = ("torch._", "torch.utils._") if name.startswith(FENCE) else PRIVATE.get(name, "nothing")
    used = private_parts(tree, module_name(path), path.name == "__init__.py")
    assert not [part for part in used if not part.startswith(allowed)]


@pytest.mark.parametrize("path", sources(*PACKAGES), ids=lambda p: str(p.relative_to(ROOT)))
def test_private_names_of_torch_are_inside_of_the_fence(path):
    name = str(path.relative_to(ROOT))
    if not name.startswith(FENCE):
        assert not private_words(ast.parse(path.read_text()), own_attributes())


def test_every_exception_to_the_rule_is_needed():
    for name, part in PRIVATE.items():
        used = private_parts(ast.parse((ROOT / name).read_text()), "x", False)
        assert any(use.startswith(part) for use in used), name


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


@pytest.mark.parametrize(
    "code, expected",
    [
        ("node.meta.get('desc')", {"desc"}),
        ("node.meta['custom'] = {}", {"custom"}),
        ("'recompute' in node.meta", {"recompute"}),
        ("meta.get('stack_trace')", {"stack_trace"}),
        ("KEYS = ('seq_nr', 'desc')", {"seq_nr"}),
        ("node.meta['val']", set()),
        ("options['custom']", set()),
        ("meta['BLOCK_M']", set()),
        ("x._base", {"_base"}),
        ("x._schema.name", {"_schema"}),
        ("x._ours", set()),
        ("x._replace(a=1)", set()),
        ("aten._to_copy.default", set()),
        ("getattr(f, '_torchdynamo_inline', None)", {"_torchdynamo_inline"}),
        ("hasattr(x, '_is_fsdp_managed_module')", {"_is_fsdp_managed_module"}),
        ("error.real_stack", {"real_stack"}),
        ("re.compile(r'L[.self.]')", {"L[.self.]"}),
        ("def f():\n    'The root of L[1].'", set()),
    ],
)
def test_private_names_are_seen(code, expected):
    assert private_words(ast.parse(code), {"_ours"}) == expected
