"""Inductor's caches across processes: the same graph hits and gives the same bits and the same report, though the pass
does not run; a changed recipe, mark, pattern or source misses."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
import types

import pytest

from quartet_compile import backend

SCRIPT = pathlib.Path(__file__).parents[1] / "support" / "cache_script.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run the script with a cache folder that all its runs share."""
    folder = tmp_path_factory.mktemp("cache")

    def run(**settings):
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder), "PYTHONPATH": str(SCRIPT.parent)}
        command = [sys.executable, str(SCRIPT), json.dumps(settings)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture(scope="module")
def first(run):
    """The first process, with a cold cache."""
    return run()


def test_a_second_process_hits_and_gives_the_same_bits_and_report(run, first):
    second = run()
    assert (first["hits"], first["misses"]) == (0, 1)
    assert (second["hits"], second["misses"]) == (1, 0)
    assert second["digest"] == first["digest"]
    assert second["sites"] == first["sites"]
    assert [rewritten for _, rewritten, _ in second["sites"]] == [True, True, True]


@pytest.mark.parametrize(
    "settings, rewritten",
    [
        pytest.param({"options": {"recipe": "quartet-rtn"}}, 3, marks=pytest.mark.slow),
        pytest.param({"options": {"exclude": ["out"]}}, 2, marks=pytest.mark.slow),
        ({"no_fp4": True}, 0),
        ({"sources": "changed"}, 3),
    ],
    ids=str,
)
def test_a_change_misses(run, first, settings, rewritten):
    changed = run(**settings)
    assert (changed["hits"], changed["misses"]) == (0, 1)
    assert sum(done for _, done, _ in changed["sites"]) == rewritten
    assert (changed["digest"] == first["digest"]) == ("sources" in settings)


def test_a_graph_from_the_cache_keeps_what_it_makes_of_weights(run, first):
    runs = [run(options={"weight_cache": True}) for _ in range(2)]
    assert [(each["hits"], each["misses"]) for each in runs] == [(0, 1), (1, 0)]
    assert [each["kept"] for each in runs] == [3, 3] and first["kept"] == 0
    assert {each["digest"] for each in runs} == {first["digest"]}


@pytest.mark.parametrize(
    "package, file", [("passes", "plan.py"), ("kernels", "cpu/gemm.cpp"), ("kernels", "gpu/templates/*.jinja")], ids=str
)
def test_a_changed_file_is_another_source(monkeypatch, tmp_path, package, file):
    """What `sources: changed` stands for above: every kind of source is in the hash that each entry's key has."""
    copied = shutil.copytree(getattr(backend, package).__path__[0], tmp_path / package)
    monkeypatch.setattr(backend, package, types.SimpleNamespace(__path__=[str(copied)]))
    assert backend.sources_hash.__wrapped__() == backend.sources_hash()
    changed = next(copied.glob(file))
    changed.write_text(changed.read_text() + "\n")
    assert backend.sources_hash.__wrapped__() != backend.sources_hash()


def test_statistics_of_a_graph_from_the_cache(run, first):
    cold, warm = (run(options={"stats": True}) for _ in range(2))
    assert (cold["hits"], warm["hits"]) == (0, 1)
    assert cold["stats"] == warm["stats"] and "layers.0.down/dgrad/dX/cosine" in cold["stats"]
    assert cold["digest"] == warm["digest"] == first["digest"]
