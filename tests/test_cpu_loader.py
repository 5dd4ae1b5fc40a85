"""Building, caching and loading the CPU kernels. A tiny library stands for them, but for one test."""

import ctypes
import multiprocessing
import os
import threading
import warnings
from pathlib import Path

import pytest
import torch._inductor.config

from quartet_compile.errors import CompilerError, OptionError
from quartet_compile.kernels.cpu import loader, toolchain
from quartet_compile.kernels.cpu.arrays import Address

SOURCE = 'extern "C" __attribute__((visibility("default"))) int quartet_answer() { return ANSWER; }\n'


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A folder of one small source and its header, an empty cache folder, and nothing loaded yet."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "answer.cpp").write_text('#include "answer.h"\n' + SOURCE)
    (folder / "answer.h").write_text("#define ANSWER 42\n")
    monkeypatch.setattr(loader, "SOURCES", folder)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    fresh(monkeypatch)
    return folder


def fresh(monkeypatch) -> None:
    """Forget what is loaded, as a new process would."""
    monkeypatch.setattr(loader, "_library", loader.functools.cache(loader._library.__wrapped__))


def answer() -> int:
    return loader.library().quartet_answer()


def cached(sources: Path) -> list[Path]:
    return sorted((sources.parent / "cache" / "quartet").iterdir())


def count_builds(monkeypatch) -> list:
    builds, build = [], loader._build
    monkeypatch.setattr(loader, "_build", lambda *arguments: builds.append(arguments) or build(*arguments))
    return builds


def test_builds_once_and_leaves_one_file(sources, monkeypatch):
    builds = count_builds(monkeypatch)
    for _ in range(2):
        assert answer() == 42
        fresh(monkeypatch)
    assert len(builds) == 1 and [path.suffix for path in cached(sources)] == [".so"]


@pytest.mark.parametrize("name", ["answer.cpp", "answer.h"])
def test_an_edit_is_a_new_library(sources, monkeypatch, name):
    assert answer() == 42
    source = sources / name
    source.write_text(
        source.read_text() + "#undef ANSWER\n#define ANSWER 7\n"
        if name == "answer.h"
        else SOURCE.replace("ANSWER", "7")
    )
    fresh(monkeypatch)
    assert answer() == 7 and len(cached(sources)) == 2


def test_what_decides_the_contents_is_in_the_key():
    tools = toolchain.toolchain()
    keys = {loader._key(tools)}
    for field in tools._fields:
        value = getattr(tools, field)
        keys.add(loader._key(tools._replace(**{field: (*value, "x") if isinstance(value, tuple) else value + "x"})))
    assert len(keys) == 1 + len(tools._fields)


@pytest.mark.parametrize("damage", [b"", b"not a library", None], ids=["empty", "other", "truncated"])
def test_a_damaged_file_is_built_again(sources, monkeypatch, damage):
    assert answer() == 42
    (path,) = cached(sources)
    whole = path.read_bytes()
    path.unlink()  # it is mapped
    path.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    fresh(monkeypatch)
    builds = count_builds(monkeypatch)
    assert answer() == 42 and len(builds) == 1
    assert any(path.read_bytes() == whole for path in cached(sources))


def test_two_processes_build_at_once(sources):
    def child(answers, start) -> None:
        start.wait()
        answers.put(answer())

    forking = multiprocessing.get_context("fork")
    answers, start = forking.Queue(), forking.Barrier(2)
    both = [forking.Process(target=child, args=(answers, start)) for _ in range(2)]
    for process in both:
        process.start()
    assert [answers.get(timeout=60) for _ in both] == [42, 42]
    for process in both:
        process.join()
    assert all(path.suffix == ".so" for path in cached(sources))


def test_two_threads_build_once(sources, monkeypatch):
    builds, answers = count_builds(monkeypatch), []
    threads = [threading.Thread(target=lambda: answers.append(answer())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [42] * 4 and len(builds) == 1


def test_a_folder_that_cannot_be_made_falls_back(sources, monkeypatch):
    (sources.parent / "cache").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="TORCHINDUCTOR_CACHE_DIR"):
        assert answer() == 42


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to a read-only folder")
def test_a_read_only_folder_falls_back(sources, monkeypatch):
    folder = sources.parent / "cache" / "quartet"
    folder.mkdir(parents=True)
    folder.chmod(0o555)
    with pytest.warns(UserWarning, match="Permission denied.*TORCHINDUCTOR_CACHE_DIR"):
        assert answer() == 42


def test_a_read_only_folder_with_the_library_is_enough(sources, monkeypatch):
    assert answer() == 42
    fresh(monkeypatch)
    monkeypatch.setattr(loader.tempfile, "TemporaryDirectory", None)  # what a build starts with
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert answer() == 42


def test_no_compiler(sources, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler")}):
        with pytest.raises(CompilerError, match="'no-such-compiler' can't be run. Install g[+][+].*or set CXX"):
            loader.library()


def test_a_failed_compilation_shows_the_command_and_what_it_said(sources):
    (sources / "broken.cpp").write_text("int broken() { return undeclared; }\n")
    with pytest.raises(CompilerError, match="(?s)Command: .*broken.cpp.*undeclared"):
        loader.library()
    assert cached(sources) == []


def test_isa_names(monkeypatch):
    def isa(name: str) -> str:
        monkeypatch.setenv(toolchain.ISA_VARIABLE, name)
        return toolchain.isa.__wrapped__()

    assert [isa(name) for name in toolchain.supported_isas()] == toolchain.supported_isas()
    with pytest.raises(OptionError, match="'avx1024'.*expected one of avx512vnni, avx512, avx2, portable"):
        isa("avx1024")
    monkeypatch.setattr(toolchain, "_cpu_features", lambda: {"avx2", "fma", "f16c", "avx512f"})
    assert isa("avx2") == "avx2" and toolchain.supported_isas() == ["avx2", "portable"]
    with pytest.raises(OptionError, match="lacks avx512bw, avx512cd, avx512dq, avx512vl; it supports avx2, portable"):
        isa("avx512")


def test_openmp_runtime_is_torch_s():
    """One pool of threads: the library needs the file that torch has mapped, and adds no other."""
    loader.library()
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    mapped = {line.split()[-1] for line in maps.read_text().splitlines() if "omp" in Path(line.split()[-1]).name}
    assert [path for path in mapped if Path(path).name.startswith(("libgomp", "libiomp", "libomp"))] == [
        toolchain._torch_openmp()
    ]


def test_signatures():
    function = loader.function("quartet_quantize", "piiiippi")
    pointer, integer = function.argtypes[:2]
    assert integer is ctypes.c_int64 and function.restype is None
    assert pointer.from_param(Address(8)).value == 8 and pointer.from_param(None).value is None
    with pytest.raises(TypeError, match="pointer of type int; expected None, Address or byref"):
        pointer.from_param(8)  # an address that nothing checked
