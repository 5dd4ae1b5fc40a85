"""Make the helpers of tests/support, the second definition of tests/golden and the baselines of examples/ importable; the
repository's root and tests/ not: a folder `kernels` there would hide a package of that name that transformers looks for."""

import os
import pathlib
import sys

TESTS = pathlib.Path(__file__).parent
ROOT = TESTS.parent
sys.path = [path for path in sys.path if path not in ("", str(ROOT), str(TESTS))]
sys.path[:0] = [str(TESTS / "support"), str(TESTS / "golden"), str(ROOT / "examples")]

# The tests keep every core busy by themselves; a pool of compiling processes costs each test in a process of its own 2 s.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import pytest  # noqa: E402
import torch  # noqa: E402
from filelock import FileLock  # noqa: E402  torch brings it

torch.set_num_threads(1)  # small tensors: two threads make the reference 10 times slower on two busy cores


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """`once(name, make)`: what `make()` gives, made by the first of pytest-xdist's processes that asks; the others wait, and
    read it from a file. For what takes long and several tests of a file look at."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent

    def get(name, make):
        path = folder / f"{name.replace('/', '_')}.pt"
        with FileLock(f"{path}.lock"):
            if not path.exists():
                torch.save(make(), path)
        return torch.load(path, weights_only=False)

    return get


@pytest.fixture(autouse=True)
def _same_path():
    """What a test puts on the path, as the command line does the current folder, goes with it."""
    before = list(sys.path)
    yield
    sys.path[:] = before


@pytest.fixture
def graphs(monkeypatch):
    """Compile by Capture instead of Inductor, in milliseconds; gives the list of reports, which fills."""
    from quartet_compile import _compat
    from quartet_compile.capture.capture import compile_plainly

    torch._dynamo.reset()
    reports = []

    def compile_fx(gm, inputs, config_patches):
        run = config_patches["joint_custom_pre_pass"]
        run.record = reports.append
        return compile_plainly(gm, inputs, run)

    monkeypatch.setattr(_compat, "compile_fx", compile_fx)
    return reports
