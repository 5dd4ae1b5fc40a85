"""What a user gets from pip: the wheel that the source distribution makes, in an environment of its own, used from another
folder. torch and the other dependencies are those of this environment."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import torch

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = pathlib.Path(__file__).parents[2]
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
USE = """
import torch
model = torch.compile(torch.nn.Linear(64, 64), backend="quartet", options={"strict": True})
model(torch.randn(32, 64)).sum().backward()
import quartet_compile as qc
print(qc.__file__)
print(qc.explain(model, torch.randn(32, 64)).sites[0].runs_in)
"""


def run(*command, cwd):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["TORCHINDUCTOR_CACHE_DIR"] = str(cwd / "cache")
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_every_folder_with_code_is_a_package_of_the_wheel_with_its_data():
    """Else an editable install has it, and the wheel doesn't."""
    given = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    homes = {
        "quartet_compile": "quartet_compile",
        "passes": "quartet_compile.passes",
        "kernels": "quartet_compile.kernels",
    }
    found, missing = set(), []
    for top, package in homes.items():
        for path in (ROOT / top).rglob("*"):
            if not path.is_file() or "__pycache__" in path.parts:
                continue
            inside = path.relative_to(ROOT / top)
            parents = list(zip(inside.parents, [inside.relative_to(each) for each in inside.parents], strict=True))
            names = {".".join([package, *parent.parts]): rest for parent, rest in parents}
            if path.suffix == ".py":
                found.add(".".join([package, *inside.parent.parts]))
            elif not any(
                rest.match(glob) and len(rest.parts) == len(pathlib.PurePath(glob).parts)
                for name, rest in names.items()
                for glob in given["package-data"].get(name, [])
            ):
                missing.append(str(path))
    assert found == set(given["packages"]) and not missing


@pytest.mark.slow
def test_the_wheel_of_the_source_distribution_trains_where_there_is_no_checkout(tmp_path):
    checkout, sources = tmp_path / "checkout", tmp_path / "sources"
    left_out = shutil.ignore_patterns(".*", "build", "dist", "runs", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, checkout, ignore=left_out)
    archive = tmp_path / run(sys.executable, "-c", BUILD, "build_sdist", tmp_path, cwd=checkout)[-1]
    shutil.rmtree(checkout)
    shutil.unpack_archive(archive, sources)
    (unpacked,) = sources.iterdir()
    wheel = tmp_path / run(sys.executable, "-c", BUILD, "build_wheel", tmp_path, cwd=unpacked)[-1]
    shutil.rmtree(sources)

    home, elsewhere = tmp_path / "venv", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run(sys.executable, "-m", "venv", "--without-pip", home, cwd=tmp_path)
    python = home / "bin" / "python"
    (site,) = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=elsewhere)
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", site, wheel, cwd=tmp_path)
    pathlib.Path(site, "dependencies.pth").write_text(f"{pathlib.Path(torch.__file__).parents[1]}\n")

    where, runs_in = run(python, "-c", USE, cwd=elsewhere)
    assert pathlib.Path(where).is_relative_to(site) and runs_in == "fp4"
    assert any(line.startswith("quartet ") for line in run(python, "-m", "quartet_compile", "recipes", cwd=elsewhere))
