"""What a user's type checker sees of the package as it is installed: the files that setuptools would copy, `py.typed`
with them."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("mypy")

ROOT = pathlib.Path(__file__).parents[2]
BUILD = "import setuptools; setuptools.setup()"
PRELUDE = """
import torch
from torch import nn

import quartet_compile as qc

model, x = nn.Sequential(nn.Linear(64, 64)), torch.randn(64, 64)


@qc.fp4
def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a @ b


@qc.quartet(recipe="quartet-rtn", fullgraph=True)
def step(a: torch.Tensor) -> torch.Tensor:
    return a


"""
TYPES = {
    "qc.explain(model, x)": "quartet_compile.report.report.Report",
    "qc.explain(model, x).sites[0].gemms": "typing.Mapping[str, str | None]",
    "qc.graph_diff(model, kwargs={'input': x})": "str",
    "qc.quartet(model)": "torch.nn.modules.container.Sequential",
    "step": "def (a: torch._tensor.Tensor) -> torch._tensor.Tensor",
    "product": "def (a: torch._tensor.Tensor, b: torch._tensor.Tensor) -> torch._tensor.Tensor",
    "qc.no_fp4()": "contextlib.AbstractContextManager[None, bool | None]",
    "qc.register_recipe(qc.recipe('quartet'))": "quartet_compile.config.recipe.Recipe",
    "qc.quantize(x, 'nvfp4-rtn')": "quartet_compile.quantized.QuantizedTensor",
    "qc.quantize(x, 'nvfp4-rtn').dequantize()": "torch._tensor.Tensor",
    "qc.quantizer('nvfp4-rtn')": "quartet_compile.kernels.quantizer.Quantizer",
    "qc.recipe('quartet').dgrad": "quartet_compile.config.recipe.Gemm | None",
    "qc.stats(model).to_dict()": "dict[str, list[Any]]",
    "qc.cross_compile(model, x, target='sm_120').kernels": "tuple[quartet_compile.cross.artifact.Kernel, ...]",
    "qc.TARGETS['sm_100']": "quartet_compile.machines.targets.Target",
    "qc.law.PUBLISHED.predict(1e9, 1e11)": "float",
}
WRONG = {
    "qc.explain(model, x).site": "attr-defined",
    "qc.quartet(model, regions=1)": "call-overload",
    "qc.quartet(model, excldue=['*'])": "call-overload",  # codespell:ignore
    "qc.quartet(model, strict='yes')": "call-overload",
    "qc.explain(model, x, scope='some')": "arg-type",
    "qc.enable(excldue=['*'])": "call-arg",  # codespell:ignore
    "qc.register_backend('mine', recipe=4)": "arg-type",
    "qc.set_recipe(model, 4)": "arg-type",
    "qc.first_and_last_blocks()": "call-arg",
}


@pytest.fixture(scope="module")
def answers(request, tmp_path_factory, once):
    """mypy's line for each expression, of one strict run over a user's file."""
    return once("types", lambda: ask(tmp_path_factory.mktemp("types"), request.config.cache.mkdir("mypy")))


def ask(folder, cache):
    site, user = folder / "site", folder / "user.py"
    build = ["egg_info", "--egg-base", str(folder), "build_py", "--build-lib", str(site)]
    subprocess.run([sys.executable, "-c", BUILD, "-q", *build], cwd=ROOT, check=True, capture_output=True)
    user.write_text(PRELUDE + "".join(f"reveal_type({text})\n" for text in TYPES) + "\n".join(WRONG) + "\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", os.devnull, "--no-error-summary"]
    command += ["--cache-dir", str(cache), user.name]
    found = subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True
    )
    first = PRELUDE.count("\n") + 1
    said = {text: [] for text in (*TYPES, *WRONG)}
    for line in found.stdout.splitlines():
        file, number, message = line.split(":", 2)
        assert file == user.name and int(number) >= first, line
        said[[*said][int(number) - first]].append(message.strip())
    return said


@pytest.mark.parametrize("text", TYPES)
def test_a_user_sees_the_type(answers, text):
    assert answers[text] == [f'note: Revealed type is "{TYPES[text]}"']


@pytest.mark.parametrize("text", WRONG)
def test_a_mistake_is_seen(answers, text):
    errors = [message for message in answers[text] if message.startswith("error:")]
    assert any(error.endswith(f"[{WRONG[text]}]") for error in errors), errors
