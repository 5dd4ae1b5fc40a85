"""Building, caching and loading the CPU kernels. A tiny library stands for them, but for one test."""

import ctypes
import multiprocessing
import os
import signal
import threading
import warnings
from pathlib import Path

import pytest
import torch._inductor.config

from quartet_compile.errors import CompilerError, OptionError
from quartet_compile.kernels.cpu import loader, toolchain
from quartet_compile.kernels.cpu.arrays import Address
from quartet_compile.kernels.cpu.scratch import remove_leftovers, scratch_folder

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


@pytest.fixture
def compiler(sources, monkeypatch):
    """Put lines of shell in front of the compiler: `compiler(before)`; `$*` is its command line."""

    def put(before: str) -> Path:
        script, real = sources.parent / "c++", toolchain.require_compiler()
        script.write_text(f'#!/bin/sh\n{before}\nexec "{real}" "$@"\n')
        script.chmod(0o755)
        monkeypatch.setattr(toolchain, "require_compiler", lambda: str(script))
        return script

    return put


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
    monkeypatch.setattr(loader, "scratch_folder", None)  # what a build starts with
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert answer() == 42


NO_SPACE = 'echo "fatal error: error writing to $TMPDIR/a.s: No space left on device" >&2; exit 1'


def test_a_full_disk_falls_back_and_leaves_nothing(sources, compiler, tmp_path_factory, monkeypatch):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.setattr(loader.tempfile, "tempdir", str(elsewhere))
    compiler(f'case "$TMPDIR" in {sources.parent / "cache"}/*) {NO_SPACE};; esac')
    with pytest.warns(UserWarning, match="No space left on device.*writable folder with 10 MB free") as caught:
        assert answer() == 42
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    assert cached(sources) == [] and list(elsewhere.iterdir()) == []


def test_no_space_anywhere_says_so(sources, compiler):
    compiler(f'case "$*" in *-o*) {NO_SPACE};; esac')
    with pytest.raises(
        CompilerError, match="(?s)No space left.*nor in a temporary one.*No space left.*TMPDIR"
    ) as caught:
        loader.library()
    assert "GCC" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_library_that_cannot_be_mapped_falls_back(sources, monkeypatch):
    """A cache on a file system that holds no programs (noexec)."""
    load = ctypes.CDLL

    def mapped(path: str) -> ctypes.CDLL:
        if "/cache/" in path:
            raise OSError(f"{path}: failed to map segment from shared object")
        return load(path)

    monkeypatch.setattr(loader.ctypes, "CDLL", mapped)
    with pytest.warns(UserWarning, match="failed to map segment.*TORCHINDUCTOR_CACHE_DIR"):
        assert answer() == 42


@pytest.mark.parametrize("compiler_is", ["killed", "left behind"])
def test_a_killed_build_leaves_nothing_to_trip_over(sources, compiler, compiler_is):
    """The process dies of SIGKILL while the compiler runs; the folder that it built in goes at the next build."""
    began = sources.parent / "began"
    hang = f"echo $$ > {began}.new; mv {began}.new {began}; exec sleep 30"
    compiler(f'case "$*" in *-c*) [ -e {began} ] || {{ {hang}; }};; esac')
    process = multiprocessing.get_context("fork").Process(target=answer)
    process.start()
    while not began.exists():
        process.join(0.01)
        assert process.is_alive()
    (left,) = cached(sources)
    process.kill()
    process.join()
    if compiler_is == "killed":
        os.kill(int(began.read_text()), signal.SIGKILL)
    assert answer() == 42 and left in cached(sources)  # it may be of a process that has made it this moment
    os.utime(left, (0, 0))
    (sources / "answer.h").write_text("#define ANSWER 7\n")
    with pytest.MonkeyPatch.context() as patch:
        fresh(patch)
        assert answer() == 7
    assert [path.suffix for path in cached(sources)] == [".so", ".so"]
    if compiler_is == "left behind":
        os.kill(int(began.read_text()), signal.SIGKILL)


def test_the_folder_of_a_living_process_stays(tmp_path):
    with scratch_folder(tmp_path) as folder:
        os.utime(folder, (0, 0))
        remove_leftovers(tmp_path)
        assert folder.exists()
    assert list(tmp_path.iterdir()) == []


def test_no_compiler(sources, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with (
        torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler")}),
        pytest.raises(CompilerError, match="'no-such-compiler' can't be run. Install g[+][+].*or set CXX"),
    ):
        loader.library()


def test_a_failed_compilation_shows_the_command_and_what_it_said(sources):
    (sources / "broken.cpp").write_text("int broken() { return undeclared; }\n")
    with pytest.raises(CompilerError, match="(?s)Command: .*broken.cpp.*undeclared"):
        loader.library()
    assert cached(sources) == []


@pytest.mark.parametrize(
    "version, words",
    [
        ("g++ (GCC) 8.5.0", "is GCC 8, which is too old: expected GCC 9, clang 12 or later. Install one and set CXX"),
        ("Debian clang version 11.0.1-2", "is clang 11, which is too old: expected GCC 9, clang 12 or later"),
        (
            "g++ (Debian 12.2.0-14) 12.2.0",
            "known to compile with GCC 9, clang 12 and later: set CXX to another compiler",
        ),
        ("something else", "known to compile with GCC 9, clang 12 and later: set CXX to another compiler"),
    ],
)
def test_a_failed_compilation_blames_an_old_compiler_only(sources, compiler, version, words):
    compiler(f'case "$*" in --version) echo "{version}"; exit;; *) echo "error: no" >&2; exit 1;; esac')
    with pytest.raises(CompilerError, match="(?s)Command:.*error: no") as caught:
        loader.library()
    assert words in str(caught.value)


def test_isa_names(monkeypatch):
    def isa(name: str) -> str:
        monkeypatch.setenv(toolchain.ISA_VARIABLE, name)
        return toolchain.isa.__wrapped__()

    assert [isa(name) for name in toolchain.supported_isas()] == toolchain.supported_isas()
    with pytest.raises(OptionError, match="'avx1024'.*expected one of amx, avx512vnni, avx512, avx2, portable"):
        isa("avx1024")
    assert isa("") == toolchain.supported_isas()[0]  # as unset
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
