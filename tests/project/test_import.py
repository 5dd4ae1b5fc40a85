"""What an import of the package loads, and that what comes later still comes."""

from __future__ import annotations

import ast
import importlib
import pathlib
import subprocess
import sys

import pytest

import quartet_compile as qc
from quartet_compile._compat.imported import when_imported

HEAVY = ("torch._dynamo", "torch._inductor", "sympy", "triton", "scipy", "matplotlib", "safetensors", "transformers")
SOURCE = ast.parse(pathlib.Path(qc.__file__).read_text())


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded_by(program: str) -> list[str]:
    """Those of `HEAVY` that a program loads which only torch had not, and how many modules, at the end of its output."""
    return run(
        f"import sys, torch\nbefore = set(sys.modules)\n{program}\n"
        f"new = set(sys.modules) - before\nprint(*sorted(new & {set(HEAVY)!r}), len(new))"
    ).splitlines()[-1:]


def test_an_import_loads_neither_torchs_compiler_nor_other_packages():
    (last,) = loaded_by("import quartet_compile")
    assert int(last) < 80  # 1047 with torch's compiler


@pytest.mark.parametrize(
    "arguments", [["recipes"], ["recipes", "quartet2"], ["law", "predict", "--parameters", "8B", "--tokens", "15T"]]
)
def test_commands_that_compile_nothing_load_no_compiler(arguments):
    (last,) = loaded_by(f"from quartet_compile.__main__ import main\nmain({arguments!r})")
    assert last.isdigit()


def test_help_loads_no_compiler():
    (last,) = loaded_by("from quartet_compile.__main__ import parser\nparser().format_help()")
    assert last.isdigit()


def test_the_ops_are_there_after_the_import():
    assert (
        run("import torch, quartet_compile; print(torch.ops.quartet.quantize.default.name())") == "quartet::quantize\n"
    )


def test_each_public_name_is_where_its_table_says():
    for name in qc.__all__:
        assert getattr(qc, name) is not None
    homes = {name: module for module, names in qc._HOMES.items() for name in names}
    assert {*homes, *qc._MODULES, "__version__"} == set(qc.__all__) <= set(dir(qc))
    assert all(getattr(qc, name) is getattr(importlib.import_module(f"quartet_compile.{home}"), name)
               for name, home in homes.items())  # fmt: skip


def test_editors_and_type_checkers_see_the_same_names():
    (block,) = [n for n in SOURCE.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    seen = {name.name: node.module for node in block.body for name in node.names}
    assert seen == dict.fromkeys(qc._MODULES) | {name: module for module, names in qc._HOMES.items() for name in names}


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'quartet_compile' has no attribute 'quartett'"):
        _ = qc.quartett


def test_calls_are_watched_that_torch_compiles_after_the_import():
    program = """
import torch, quartet_compile
compiled = torch.compile(torch.nn.Linear(64, 64).double(), backend="quartet")
compiled(torch.randn(32, 64).double())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "none of 1 matmuls in FP4" in done.stderr


def test_an_error_reaches_the_user_unwrapped_in_a_process_that_loads_the_compiler_after_it():
    program = """
import torch, quartet_compile as qc
qc.OptionError
try:
    torch.compile(torch.nn.Linear(64, 64), backend="quartet", options={"stric": True})(torch.randn(32, 64))
except ValueError as error:
    print(type(error) is qc.OptionError, error)
"""
    assert run(program).startswith("True Unknown option 'stric' (did you mean 'strict'?)")


def test_an_action_waits_for_the_module_and_runs_once(tmp_path, monkeypatch):
    (tmp_path / "quartet_waited_for.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    seen = []
    when_imported("quartet_waited_for", lambda module: seen.append(module.value))
    assert not seen
    module = importlib.import_module("quartet_waited_for")
    when_imported("quartet_waited_for", lambda module: seen.append("at once"))
    assert seen == [1, "at once"] and type(module.__loader__).__name__ == "SourceFileLoader"
    del sys.modules["quartet_waited_for"]
    importlib.import_module("quartet_waited_for")
    assert seen == [1, "at once"]


def test_an_action_for_a_module_that_is_missing_changes_nothing():
    when_imported("quartet_no_such_module", print)
    with pytest.raises(ModuleNotFoundError, match="quartet_no_such_module"):
        importlib.import_module("quartet_no_such_module")
