"""The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer, in a process of their own (sanitized.py)."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

from quartet_compile.kernels.cpu import toolchain

SUPPORT = pathlib.Path(__file__).parents[1] / "support"
FLAGS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def runtimes() -> str:
    """What must be loaded first: the sanitizer, and the C++ library whose exceptions it looks at. Skips without them."""
    compiler = toolchain.toolchain().compiler
    found = [toolchain.run([compiler, f"-print-file-name={name}"]).strip() for name in ("libasan.so", "libstdc++.so.6")]
    missing = [path for path in found if not os.path.isabs(path)]
    if missing:
        pytest.skip(f"{compiler} has no {' and no '.join(missing)}")
    return " ".join(found)


@pytest.mark.slow
@pytest.mark.parametrize("isa", [*toolchain.supported_isas(), "emulated amx"])
def test_no_kernel_leaves_its_tensors_or_the_language(isa, tmp_path):
    flags = list(FLAGS)
    if isa == "emulated amx":
        if "avx512vnni" not in toolchain.supported_isas():
            pytest.skip("the packing needs AVX512")
        isa = "avx512vnni"
        flags += [
            *(f"-m{feature}" for feature in toolchain.ISA_FEATURES["amx"]),
            "-include",
            str(SUPPORT / "amx_tiles.h"),
        ]
    environment = os.environ | {
        "LD_PRELOAD": runtimes(),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
        toolchain.ISA_VARIABLE: isa,
    }
    command = [sys.executable, str(SUPPORT / "sanitized.py"), *flags]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "all kernels ran" in done.stdout, done.stderr
