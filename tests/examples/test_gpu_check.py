"""The command `make gpu-check`, as far as it goes without a GPU: running parts, reading results, and the package without
an installation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import bench_step
import gpu_check
import pytest
import torch

ROOT = Path(__file__).parents[2]
WHAT = {"device": "NVIDIA H200", "torch": "2.11.0", "triton": "3.6.0", "python": "3.12.3", "commit": "commit 12ab"}
VERBOSE = """\
tests/gpu/test_ops.py::test_quantize[plain-a b] PASSED                   [ 10%]
tests/gpu/test_ops.py::test_pair FAILED                                  [ 20%]
tests/gpu/test_ops.py::test_nothing SKIPPED (needs a GPU)                [ 30%]
=================================== FAILURES ===================================
FAILED tests/gpu/test_ops.py::test_pair - AssertionError: codes differ
"""
PARALLEL = """\
tests/gpu/test_ops.py::test_pair
[gw0] [ 50%] PASSED tests/gpu/test_ops.py::test_quantize[torch.bfloat16-plain]
[gw11] [100%] FAILED tests/gpu/test_ops.py::test_pair
"""


def ended(name: str, code: int | None = 0, output: str = "") -> gpu_check.Part:
    return gpu_check.Part(name, [], 10.0, code=code, seconds=3.0, output=output)


def kernel_row(op: str, **fields) -> dict:
    return {"op": op, "error": "", "share_of_copy": None, "ratio": None, **fields}


def write_figures(folder: Path) -> None:
    rows = [
        kernel_row("quantize X, mask", share_of_copy=0.91),
        kernel_row("quantize X, mask", share_of_copy=0.785),
        kernel_row("scaled_mm, fprop", ratio=1.4),
        kernel_row("unrotate dX, mask", error="RuntimeError: no"),
    ]
    (folder / "bench_kernels.json").write_text(json.dumps({"copy_bytes_a_second": 4.3e12, "rows": rows}))
    times = [("Inductor, bf16", 0.040, 1.0), ("quartet backend, quartet, bf16", 0.036, 0.9)]
    steps = [{"name": name, "step_seconds": [t], "step_ratio": ratio} for name, t, ratio in times]
    (folder / "bench_step.json").write_text(json.dumps({"variants": steps}))


def test_outcomes_with_and_without_xdist():
    assert gpu_check.outcomes(VERBOSE) == {
        "tests/gpu/test_ops.py::test_quantize[plain-a b]": "PASSED",
        "tests/gpu/test_ops.py::test_pair": "FAILED",
        "tests/gpu/test_ops.py::test_nothing": "SKIPPED",
    }
    assert list(gpu_check.outcomes(PARALLEL).values()) == ["PASSED", "FAILED"]


def test_table(tmp_path):
    write_figures(tmp_path)
    done = [ended("tests", 1, VERBOSE), ended("bench_kernels"), ended("bench_step", None)]
    made = gpu_check.summary(done, WHAT, tmp_path)
    assert gpu_check.table(made) == (
        """\
gpu-check: FAILED
NVIDIA H200, torch 2.11.0, triton 3.6.0, Python 3.12.3, commit 12ab
tests                           failed (exit code 1)            3.0 s  (1 failed, 1 passed, 1 skipped)
bench_kernels                   passed                          3.0 s
bench_step                      timed out                       3.0 s
  failed: tests/gpu/test_ops.py::test_pair
copy, read and written          4.30 TB/s
quantize X, mask                78 to 91 % of copy           aim: at least 80 %
scaled_mm, fprop                1.40 to 1.40 times bf16      aim: at least 1, with FP8; else .7
unrotate dX, mask               not measured, 1 failed
step: quartet backend, quartet, bf16 36.0 ms, 0.90x               aim: at most 1.3x
step: Inductor, bf16            40.0 ms"""
    )


@pytest.mark.parametrize(
    "output, code, passed",
    [
        ("tests/gpu/a.py::b PASSED", 0, True),
        ("tests/gpu/a.py::b PASSED", 1, False),
        ("tests/gpu/a.py::b PASSED", None, False),
        ("tests/gpu/a.py::b SKIPPED (no GPU)", 0, False),
        ("", 0, False),
    ],
)
def test_passes_only_if_everything_ended_well_and_a_test_ran(tmp_path, output, code, passed):
    made = gpu_check.summary([ended("tests", code, output), ended("bench_step")], WHAT, tmp_path)
    assert made["passed"] is passed
    assert made["figures"] == []


def runs(pid):
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_part_that_takes_too_long_is_ended_with_what_it_started(tmp_path):
    script = "import subprocess, sys, time; print('so far', flush=True); subprocess.run([sys.executable, '-c', %r])"
    child = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    part = gpu_check.Part("slow", [sys.executable, "-c", script % child], limit=3.0)
    start = time.monotonic()
    gpu_check.run(part, tmp_path, os.environ, start + 100)
    assert time.monotonic() - start < 20
    assert (part.outcome, part.output) == ("timed out", "so far\n")
    assert (tmp_path / "slow.txt").read_text() == "so far\n"
    child_pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 20  # a kill is sent at once; when its process is gone, the kernel decides
    while runs(child_pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not runs(child_pid)


def test_a_part_that_fails_keeps_its_output_and_exit_code(tmp_path):
    part = gpu_check.Part("bad", [sys.executable, "-c", "print('why'); raise SystemExit(3)"], limit=20.0)
    gpu_check.run(part, tmp_path, os.environ, time.monotonic() + 100)
    assert (part.outcome, part.output) == ("failed (exit code 3)", "why\n")


def test_links_stand_for_an_installation(tmp_path):
    """Imported from the links alone: no site folder of this Python, so neither the editable installation."""
    site = gpu_check.links(tmp_path / "site")
    found = [path for path in map(Path, sys.path) if path.name == "site-packages" and (path / "torch").exists()]
    others = tmp_path / "others"
    others.mkdir()
    for path in found[0].iterdir():
        if "quartet" not in path.name and path.suffix != ".pth":
            (others / path.name).symlink_to(path)
    program = (
        "import torch, quartet_compile; from quartet_compile.passes import joint; from quartet_compile.kernels import ops;"
        "import torch._dynamo; assert torch._dynamo.lookup_backend('quartet').__name__ == 'quartet';"
        "print(quartet_compile.__file__)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (site, others)))}
    done = subprocess.run(
        [sys.executable, "-S", "-c", program],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == str(site / "quartet_compile" / "__init__.py"), done.stderr[-2000:]


def test_without_a_gpu_nothing_is_checked(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main(["--out", str(tmp_path / "out")]) == 1
    assert "nothing was checked" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_parts_on_a_gpu(tmp_path):
    tests, kernels, step = gpu_check.parts(tmp_path, "cuda", {"tests": 1, "bench_kernels": 2, "bench_step": 3})
    assert "tests/gpu" in tests.command and "-k" not in tests.command
    assert ["--device", "cuda"] == kernels.command[3:5] == step.command[3:5]
    assert (tests.limit, kernels.limit, step.limit) == (1, 2, 3)


def test_gpu_tests_are_skipped_without_a_gpu():
    """With a reason, and never collected into `make test`."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-o", "addopts=", "-rs", "-m", "gpu", "tests/gpu", "-p", "no:cacheprovider"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    assert "sees no CUDA device" in done.stdout
    assert "passed" not in done.stdout and "deselected" not in done.stdout


def test_calls_of_ops_are_told_from_comments(monkeypatch):
    """What makes the GPU tests fail where an op ran instead of its template."""
    monkeypatch.setenv("QUARTET_GPU_TESTS_DEVICE", "cpu")
    monkeypatch.syspath_prepend(ROOT / "tests" / "gpu")
    import compiled_ops

    comment = (
        "#   %q = call_function[target=torch.ops.quartet.quantize.default](args = (%x,))\n# quartet: quantize mxfp4\n"
    )
    call = "    buf0 = torch.ops.quartet.unrotate.default(arg0_1, None, 32, 64)\n"
    assert compiled_ops.called_ops(comment + call) == {"unrotate"}
    monkeypatch.setattr(compiled_ops, "ON_GPU", True)
    compiled_ops.assert_templates(comment, ["quantize"])
    with pytest.raises(AssertionError, match="calls unrotate instead"):
        compiled_ops.assert_templates(comment + call, ["quantize"])
    with pytest.raises(AssertionError, match="no template quantize_pair"):
        compiled_ops.assert_templates(comment, ["quantize_pair"])


class TestStepDefaults:
    def test_on_a_cpu(self):
        args = bench_step.parse([])
        assert (args.size, args.layers, args.tokens, args.seq) == ("30M", None, 512, 512)
        assert (args.dtype, args.no_swap) == (["float32", "bfloat16"], False)

    def test_on_a_gpu(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        args = bench_step.parse(["--device", "cuda"])
        assert (args.size, args.layers, args.tokens, args.seq) == ("800M", 4, 8192, 2048)
        assert (args.dtype, args.no_swap) == (["bfloat16"], True)

    def test_processor_time_is_of_one_thread(self, capsys):
        assert bench_step.parse(["--threads", "1", "--clock", "processor"]).clock == "processor"
        with pytest.raises(SystemExit):
            bench_step.parse(["--clock", "processor"])
        assert "needs --device cpu and --threads 1" in capsys.readouterr().err

    def test_ratios_are_to_the_same_dtype(self):
        """The first variant of each dtype is what the others of it are compared with."""
        made = [v for dtype in bench_step.DTYPES for v in bench_step.variants(torch.nn.Linear(4, 4), [], dtype=dtype)]
        for seconds, variant in enumerate(made, 1):
            variant.gradient_seconds = variant.step_seconds = [float(seconds)]
        ratios = [variant["step_ratio"] for variant in bench_step.record(made, "")["variants"]]
        assert ratios == [1.0, 2.0, 1.0, 4 / 3]
        assert [line.split()[-3] for line in bench_step.table(made, 1).splitlines()[1:]] == [
            "1.00",
            "2.00",
            "1.00",
            "1.33",
        ]

    def test_no_gpu(self, monkeypatch, capsys):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(SystemExit):
            bench_step.parse(["--device", "cuda"])
        assert "sees no GPU" in capsys.readouterr().err
