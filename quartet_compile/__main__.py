"""The command line: `python -m quartet_compile recipes | explain | diff | cross-compile | advise | law | export | doctor`.

    python -m quartet_compile recipes
    python -m quartet_compile explain model.py:MyModel --input 2x128x64
    python -m quartet_compile diff my.package:build --exclude 'layers.0.*'
    python -m quartet_compile cross-compile model.py:MyModel --input 2x128x64:bfloat16 --target sm_120 --out build
    python -m quartet_compile advise model.py:build --target sm_100 --tokens 15T
    python -m quartet_compile law regions --recipe quartet
    python -m quartet_compile export runs/checkpoint served --format compressed-tensors --recipe quartet2

What was asked wrongly is one line on stderr, and exit code 2; so is a result that can't be written, with exit code 1.
A command loads what it needs when it runs: torch's compiler alone takes a second.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import importlib.abc
import importlib.metadata
import importlib.util
import inspect
import json
import os
import pathlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ._compat import UnfitTorch
from .advice import cli as advise_cli
from .config.presets import recipe as find_recipe
from .config.presets import recipes
from .config.toml import load_recipe
from .doctor import cli as doctor_cli
from .errors import QuartetError, suggest
from .law import cli as law_cli
from .machines.targets import CHIPS, TARGETS
from .serving import cli as export_cli

if TYPE_CHECKING:
    from .cross.artifact import Artifact

SHAPE = re.compile(r"^(\d+(?:x\d+)*)?(?::(\w+))?$")
NAMED = re.compile(r"^([A-Za-z_]\w*)=(.*)$")


class UsageError(Exception):
    """What the user typed wrong, in one line."""


class OutputError(Exception):
    """Standard output that takes no more: a full disk."""


class ReaderGone(Exception):
    """Standard output whose reader has left, as `head` does; that needs no words."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    name = "quartet_compile"
    try:
        options = _parsed(arguments)
        name = f"quartet_compile {options.command}"
        show(options.run(options).rstrip("\n") + "\n")
    except (UsageError, QuartetError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except (OutputError, UnfitTorch) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except ReaderGone:
        return 1
    return getattr(options, "code", 0)


def show(text: str) -> None:
    """Put text on standard output, now. Raises `OutputError` or `ReaderGone`."""
    try:
        print(text, end="", flush=True)
    except OSError as error:
        with open(os.devnull, "w") as nowhere:  # for what is buffered, or Python would fail on it once more at its exit
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise ReaderGone from None
        raise OutputError(f"the output can't be written: {error.strerror}") from None


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    try:
        return parser().parse_args(arguments)
    except SystemExit:
        show("")  # what argparse wrote: the help
        raise


def parser() -> argparse.ArgumentParser:
    """The arguments of every command."""
    root = argparse.ArgumentParser(
        prog="python -m quartet_compile", description="What backend='quartet' does to a model."
    )
    version = f"quartet-compile {importlib.metadata.version('quartet-compile')}"
    root.add_argument("--version", action="version", version=version)
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser("recipes", help="the recipes: what runs in which format")
    command.add_argument(
        "names", nargs="*", metavar="RECIPE", help="names, or TOML files, to be shown operand by operand"
    )
    command.set_defaults(run=run_recipes)
    for name, run, text in (
        ("explain", run_explain, "a table of a model's matmuls: which run in FP4, and why the others don't"),
        ("diff", run_diff, "the model's graph before and after, as a diff with one line an op"),
    ):
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.set_defaults(run=run)
        _add_model_arguments(command)
    text = "what a model becomes on a GPU, without the GPU: kernels, instructions, resources, predicted times"
    command = commands.add_parser("cross-compile", help=text, description=text[0].upper() + text[1:] + ".")
    command.set_defaults(run=run_cross_compile)
    _add_model_arguments(command)
    command.add_argument("--target", default="sm_100", help=f"one of {', '.join([*TARGETS, *CHIPS])}; default: sm_100")
    command.add_argument(
        "--out", metavar="DIR", help="write the generated modules and each kernel's source, PTX, cubin"
    )
    advise_cli.add_command(commands, lambda command: _add_model_arguments(command, recipe=False), run_advise)
    law_cli.add_command(commands)
    export_cli.add_command(commands)
    doctor_cli.add_command(commands)
    return root


def _add_model_arguments(command: argparse.ArgumentParser, recipe: bool = True) -> None:
    command.add_argument(
        "model",
        metavar="MODEL",
        help="package.module:name or path/file.py:name of a Module, a Module class without arguments, or a function "
        "that returns a model, (model, inputs) or (model, inputs, kwargs)",
    )
    command.add_argument(
        "--input",
        metavar="[NAME=]SHAPE[:DTYPE]",
        action="append",
        default=[],
        help="an input, as 2x128x64 or 2x128:int64, or by keyword, as mask=2x128:bool; once for each input of the model",
    )
    if recipe:
        command.add_argument("--recipe", help="a name or a TOML file; default: quartet (see the command recipes)")
    command.add_argument("--include", metavar="GLOB", action="append", help="only modules of these names; repeatable")
    command.add_argument("--exclude", metavar="GLOB", action="append", help="keep these modules; repeatable")
    command.add_argument("--scope", help="all, or marked: only what is marked with quartet_compile.fp4")
    if recipe:
        command.add_argument(
            "--policy", help="all; or profitable:b200, to keep what the prediction for that chip says doesn't pay"
        )
        command.add_argument(
            "--strict", action="store_true", help="a matmul that should run in FP4 and can't, is an error"
        )
    command.add_argument("--no-grad", action="store_true", help="the inference graph instead of the training graph")
    command.add_argument("--json", action="store_true", help="machine-readable output")


def run_recipes(options: argparse.Namespace) -> str:
    """A table of the recipes: the quantizers of both operands of each GEMM. Of those that are named, every operand."""
    if options.names:
        return "\n\n".join(
            str(load_recipe(name) if name.endswith(".toml") else find_recipe(name)) for name in options.names
        )
    note = (
        "One name: both operands. With names (recipes quartet2): all six operands, and what each is made of.\n"
        "Which to pick: quartet, the default (MXFP4); quartet2 (NVFP4) where a rise of the loss is in doubt; mxfp8 where "
        "FP4 costs too much; quartet-rtn for gradients without noise. docs/recipes.md compares them."
    )
    return f"{recipes()}\n\n{note}"


def run_explain(options: argparse.Namespace) -> str:
    """The report of `explain`."""
    report = _report(options)
    return json.dumps(dataclasses.asdict(report), indent=1) if options.json else str(report)


def run_diff(options: argparse.Namespace) -> str:
    """The diff of `graph_diff`."""
    report = _report(options)
    diff = report.graph_diff()
    if options.json:
        return json.dumps({"diff": diff}, indent=1)
    return diff or f"No matmul was rewritten, so the graph is unchanged.\n{report}"


def run_cross_compile(options: argparse.Namespace) -> str:
    """The table of `cross_compile`; of kernels that fail too, before the error that lists them."""
    from .cross.cross_compile import CrossCompileError, cross_compile

    try:
        artifact = _call(options, cross_compile, target=options.target, progress=True)
    except CrossCompileError as error:
        _write(options, error.artifact)
        show((error.artifact.to_json() if options.json else str(error.artifact)) + "\n")
        raise
    _write(options, artifact)
    return artifact.to_json() if options.json else str(artifact)


def run_advise(options: argparse.Namespace) -> str:
    """The advice, as text or JSON."""
    try:
        return advise_cli.run_advise(options, lambda function, **given: _call(options, function, **given))
    except OSError as error:
        raise UsageError(f"--html {str(options.html)!r} can't be written: {error.strerror}") from None


def _write(options: argparse.Namespace, artifact: Artifact) -> None:
    if options.out:
        try:
            artifact.write(options.out)
        except OSError as error:
            raise UsageError(f"--out {options.out!r} can't be written: {error.strerror}") from None


def _report(options: argparse.Namespace) -> Any:
    from .capture.explain import explain

    return _call(options, explain)


def _call(options: argparse.Namespace, function: Callable, **given: Any) -> Any:
    """`function(model, *inputs, **options)` as the arguments of the command say."""
    model, inputs, kwargs = load_model(options.model)
    if options.input:
        inputs = tuple(parse_input(text) for text in options.input if not NAMED.match(text))
        named = [found.groups() for text in options.input if (found := NAMED.match(text))]
        kwargs = {name: parse_input(text) for name, text in named}
    elif inputs is None:
        raise UsageError(
            f"{options.model} comes without inputs: give their shapes, as --input 2x128x64 --input 2x128:int64"
        )
    given |= {
        name: value
        for name in ("recipe", "include", "exclude", "scope", "policy", "strict")
        if (value := getattr(options, name, None))
    }
    with torch.no_grad() if options.no_grad else contextlib.nullcontext():
        return function(model, *inputs, kwargs=kwargs, **given)


def parse_input(text: str) -> torch.Tensor:
    """An input from `2x128x64` (float32) or `2x128:int64`."""
    found = SHAPE.match(text)
    if not text or not found:
        raise UsageError(f"--input {text!r} is not a shape; expected SHAPE or SHAPE:DTYPE, as 2x128x64 or 2x128:int64")
    shape = [int(size) for size in (found.group(1) or "").split("x") if size]
    name = found.group(2) or "float32"
    dtypes = [known for known in dir(torch) if isinstance(getattr(torch, known), torch.dtype)]
    if name not in dtypes:
        raise UsageError(
            f"--input {text!r} has an unknown dtype {name!r}{suggest(name, dtypes)}; for instance float32, int64"
        )
    return torch.zeros(shape, dtype=getattr(torch, name))


def load_model(where: str) -> tuple[Callable, Sequence[Any] | None, Mapping[str, Any]]:
    """A model from `package.module:name` or `path/file.py:name`, and its inputs and keywords if it comes with them."""
    source, separator, name = where.rpartition(":")
    if not separator or not source or not name:
        raise UsageError(f"MODEL is {where!r}; expected package.module:name or path/file.py:name")
    module = _load_file(source) if source.endswith(".py") else _load_module(source)
    found = module
    for part in name.split("."):
        if not hasattr(found, part):
            known = [key for key in dir(found) if not key.startswith("_")]
            raise UsageError(f"{source} has no {name!r}{suggest(part, known)}")
        found = getattr(found, part)
    return _build(where, found)


def _build(where: str, found: Any) -> tuple[Callable, Sequence[Any] | None, Mapping[str, Any]]:
    if isinstance(found, nn.Module):
        return found, None, {}
    if not callable(found):
        raise UsageError(f"{where} is a {type(found).__name__}; expected a Module, a Module class or a function")
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        remedy = f"write a function without arguments that returns {found.__name__}(...)"
        raise UsageError(f"{where} can't be called without arguments ({error}); {remedy}") from None
    made = found()
    parts: tuple[Any, ...] = made if isinstance(made, tuple) and len(made) in (2, 3) else (made,)
    defaults: tuple[Any, ...] = (None, {})
    model, inputs, kwargs = (*parts, *defaults[len(parts) - 1 :])
    if (not isinstance(model, nn.Module) and not inspect.isroutine(model)) or not isinstance(kwargs, Mapping):
        raise UsageError(
            f"{where}() returned a {type(made).__name__}; expected a model, (model, inputs) or (model, inputs, kwargs)"
        )
    return model, inputs if inputs is None or isinstance(inputs, (tuple, list)) else (inputs,), kwargs


def _load_module(name: str) -> Any:
    sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except SyntaxError as error:
        raise _wrong_syntax(error, name) from None
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            raise UsageError(f"no module {name!r} here or among the installed packages") from None
        raise


def _load_file(path: str) -> Any:
    file = pathlib.Path(path)
    if not file.is_file():
        raise UsageError(f"no file {path!r}")
    sys.path.insert(0, str(file.parent.resolve()))
    name = f"quartet_compile_model_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and isinstance(spec.loader, importlib.abc.InspectLoader)  # as of any name that ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        try:
            spec.loader.get_code(name)
        except (OSError, ValueError) as error:  # not readable, or not text
            raise UsageError(f"{path!r} can't be read: {error}") from None
        spec.loader.exec_module(module)
    except SyntaxError as error:  # of the file, or of a module that it imports
        raise _wrong_syntax(error, path) from None
    return module


def _wrong_syntax(error: SyntaxError, source: str) -> UsageError:
    where = f"{error.filename or source}, line {error.lineno}" if error.lineno else error.filename or source
    return UsageError(f"{where}: {error.msg}" + (f" in {error.text.strip()!r}" if error.text else ""))


def _without_checkout(paths: Sequence[str]) -> list[str]:
    """`python -m` puts the working folder first. In a checkout of this project its folder `kernels` would pass for the
    package of that name, for which transformers looks."""
    root = pathlib.Path(__file__).resolve().parents[1]
    checkout = (root / "pyproject.toml").is_file()
    return [path for path in paths if not (checkout and pathlib.Path(path).resolve() == root)]


if __name__ == "__main__":
    sys.path[:] = _without_checkout(sys.path)
    sys.exit(main())
