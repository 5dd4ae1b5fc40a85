"""Everything that needs a GPU, in one command and ten minutes: the tests of tests/gpu, the kernels' times with torch's own
product of quantized operands among them, a training step.

    make gpu-check                                    with the Python that sees a GPU: .venv's, else python3
    python examples/gpu_check.py --device cpu         a trial on the CPU with tiny shapes: checks the command, not a kernel

Each part runs in a process of its own under its own time limit; the parts after a failure still run, and the exit code says
whether all passed. `--out` gets the output of each part, its figures as JSON, and the table as `summary.txt` and
`summary.json`. Needs no installed package: see `links`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
GROUP = "torch_dynamo_backends"
PYTEST = "import sys; sys.path.pop(0); import pytest; sys.exit(pytest.main(sys.argv[1:]))"
"""Without this folder on the path, where `quartet_compile` is found before `links` and lacks its subpackages."""


@dataclasses.dataclass
class Part:
    """One part of the check, and what became of it. `code`: None where its time ran out."""

    name: str
    command: list[str]
    limit: float
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    code: int | None = None
    seconds: float = 0.0
    output: str = ""

    @property
    def outcome(self) -> str:
        return "timed out" if self.code is None else "passed" if self.code == 0 else f"failed (exit code {self.code})"


# The package, without an installation


def is_importable() -> bool:
    """Whether this Python imports this checkout's package, and finds its entry point."""
    spec = importlib.util.find_spec("quartet_compile")
    if spec is None or spec.origin is None or not (ROOT / "quartet_compile").samefile(Path(spec.origin).parent):
        return False
    return any(point.name == "quartet" for point in metadata.entry_points(group=GROUP))


def links(folder: Path) -> Path:
    """Make `folder` importable in place of an installation: links to the sources, and the metadata of entry points."""
    package = folder / "quartet_compile"
    package.mkdir(parents=True)
    for path in (ROOT / "quartet_compile").iterdir():
        if path.name != "__pycache__":
            (package / path.name).symlink_to(path)
    for name in ("passes", "kernels"):
        (package / name).symlink_to(ROOT / name)
    project = (ROOT / "pyproject.toml").read_text()
    version = re.search(r'^version = "(.+)"$', project, re.MULTILINE).group(1)
    points = re.search(rf"^\[project\.entry-points\.{GROUP}\]\n((?:.+\n)+)", project, re.MULTILINE).group(1)
    info = folder / f"quartet_compile-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: quartet-compile\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{points.replace(chr(34), '')}")
    return folder


# The parts


def parts(out: Path, device: str, limits: Mapping[str, float]) -> list[Part]:
    """Tests, kernels, a step."""
    python = [sys.executable, "-u"]
    tests = [*python, "-c", PYTEST, "-o", "addopts=", "-v", "--tb=short", "-p", "no:cacheprovider", "tests/gpu"]
    kernels = [*python, "examples/bench_kernels.py", "--device", device, "--json", str(out / "bench_kernels.json")]
    step = [*python, "examples/bench_step.py", "--device", device, "--no-swap", "--json", str(out / "bench_step.json")]
    if device == "cpu":
        tests += ["-k", "test_unrotate and float32"]
        step += ["--size", "test", "--tokens", "32", "--rounds", "2"]
    elif importlib.util.find_spec("xdist"):
        tests += ["-n", str(min(6, os.cpu_count() or 1))]  # compiling takes the time, and a core each
    few = {"TORCHINDUCTOR_COMPILE_THREADS": "4"}  # in each of the processes of xdist
    return [
        Part("tests", tests, limits["tests"], few if "-n" in tests else {}),
        Part("bench_kernels", kernels, limits["bench_kernels"]),
        Part("bench_step", step, limits["bench_step"]),
    ]


def run(part: Part, out: Path, environment: Mapping[str, str], deadline: float) -> None:
    """Run a part until it ends or its time is out, showing its output and keeping it in `out/name.txt`."""
    start = time.monotonic()
    limit = max(1.0, min(part.limit, deadline - start))
    print(f"\n== {part.name}: at most {limit:.0f} s", flush=True)
    process = subprocess.Popen(
        part.command, cwd=ROOT, env={**environment, **part.environment}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
    )  # fmt: skip
    lines: list[str] = []
    reader = threading.Thread(target=_copy, args=(process, out / f"{part.name}.txt", lines), daemon=True)
    reader.start()
    try:
        part.code = process.wait(limit)
    except subprocess.TimeoutExpired:
        print(f"== {part.name}: its {limit:.0f} s are over", flush=True)
    finally:
        _end(process)
    reader.join(10)  # a process that outlives its parent may hold the pipe
    part.seconds = time.monotonic() - start
    part.output = "".join(lines)


def _copy(process: subprocess.Popen, path: Path, lines: list[str]) -> None:
    """Show and keep what a process writes."""
    with path.open("w") as log:
        for line in process.stdout:
            print(line, end="", flush=True)
            log.write(line)
            log.flush()
            lines.append(line)


def _end(process: subprocess.Popen) -> None:
    """End a part, and the processes that it started and left."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


# The summary


def outcomes(output: str) -> dict[str, str]:
    """The outcome of each test by its name, from pytest's verbose output, with or without xdist."""
    name, words = r"(tests/\S+::.+?)", r"(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)"
    found = {}
    for line in output.splitlines():
        if match := re.match(rf"(?:\[gw\d+\] \[ *\d+%\] )?{words} {name}(?: - .*| *)?$", line):
            found[match.group(2)] = match.group(1)
        elif match := re.match(rf"{name} {words}\b", line):
            found[match.group(1)] = match.group(2)
    return found


def quantities(kernels: Mapping[str, Any] | None, step: Mapping[str, Any] | None) -> list[tuple[str, str, str]]:
    """The key figures as (what, measured, aim)."""
    made = []
    if kernels:
        rate = kernels["copy_bytes_a_second"] / 1e12
        made.append(("copy, read and written", f"{rate:.2f} TB/s", ""))
        rows = kernels["rows"]
        for op in dict.fromkeys(row["op"] for row in rows):
            good = [row for row in rows if row["op"] == op and not row["error"]]
            failed = sum(row["op"] == op for row in rows) - len(good)
            text, aim = _of_op(op, good)
            made.append((op, text + (f", {failed} failed" if failed else ""), aim))
    if step:
        for variant in step["variants"][1:]:
            aim = "at most 1.3x" if variant["name"].startswith("quartet") else ""
            seconds = statistics.median(variant["step_seconds"])
            made.append((f"step: {variant['name']}", f"{1e3 * seconds:.1f} ms, {variant['step_ratio']:.2f}x", aim))
        base = step["variants"][0]
        made.append((f"step: {base['name']}", f"{1e3 * statistics.median(base['step_seconds']):.1f} ms", ""))
    return made


def _of_op(op: str, rows: list[Mapping[str, Any]]) -> tuple[str, str]:
    if not rows:
        return "not measured", ""
    if op.startswith("scaled_mm"):
        ratios = [row["ratio"] for row in rows]
        aim = "" if "library" in op else "at least 1, with FP8; else .7"
        return f"{min(ratios):.2f} to {max(ratios):.2f} times bf16", aim
    shares = [100 * row["share_of_copy"] for row in rows]
    aim = "at least 80 %" if "quantize" in op else ""
    return f"{min(shares):.0f} to {max(shares):.0f} % of copy", aim


def summary(done: list[Part], what: Mapping[str, str], out: Path) -> dict[str, Any]:
    """Everything that the table shows, as data. `passed` is whether all parts did, with at least one test that ran."""
    tests = outcomes(next((part.output for part in done if part.name == "tests"), ""))
    counts = {word.lower(): list(tests.values()).count(word) for word in sorted(set(tests.values()))}
    figures = quantities(*(_read(out / f"{name}.json") for name in ("bench_kernels", "bench_step")))
    return {
        **what,
        "passed": all(part.code == 0 for part in done) and counts.get("passed", 0) > 0,
        "parts": [{"name": p.name, "outcome": p.outcome, "seconds": round(p.seconds, 1)} for p in done],
        "tests": counts,
        "failed_tests": [name for name, word in tests.items() if word in ("FAILED", "ERROR")],
        "figures": [dict(zip(("what", "measured", "aim"), figure, strict=True)) for figure in figures],
    }


def table(made: Mapping[str, Any]) -> str:
    """The short table at the end."""
    lines = [
        f"gpu-check: {'passed' if made['passed'] else 'FAILED'}",
        f"{made['device']}, torch {made['torch']}, triton {made['triton']}, Python {made['python']}, {made['commit']}",
    ]
    counts = ", ".join(f"{count} {word}" for word, count in made["tests"].items()) or "no test ran"
    for part in made["parts"]:
        more = f"  ({counts})" if part["name"] == "tests" else ""
        lines.append(f"{part['name']:<31} {part['outcome']:<28} {part['seconds']:>6.1f} s{more}")
    lines += [f"  failed: {name}" for name in made["failed_tests"][:20]]
    for figure in made["figures"]:
        aim = f"aim: {figure['aim']}" if figure["aim"] else ""
        lines.append(f"{figure['what']:<31} {figure['measured']:<28} {aim}".rstrip())
    return "\n".join(lines)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def commit() -> str:
    """The commit, marked where the tree differs from it; without git, a hash of the sources."""
    asked = {"head": ["git", "rev-parse", "--short", "HEAD"], "changes": ["git", "status", "--porcelain"]}
    try:
        said = {k: subprocess.run(v, cwd=ROOT, capture_output=True, text=True, check=True) for k, v in asked.items()}
    except (FileNotFoundError, subprocess.CalledProcessError):
        digest = hashlib.sha256()
        for folder in ("quartet_compile", "passes", "kernels"):
            for path in sorted((ROOT / folder).rglob("*")):
                if path.suffix in (".py", ".jinja", ".cpp", ".h"):
                    digest.update(path.read_bytes())
        return f"no git, sources {digest.hexdigest()[:12]}"
    return f"commit {said['head'].stdout.strip()}" + (" with changes" if said["changes"].stdout.strip() else "")


def described(device: str) -> dict[str, str]:
    """The device and the versions."""
    import torch

    try:
        triton = metadata.version("triton")
    except metadata.PackageNotFoundError:
        triton = "none"
    name = torch.cuda.get_device_name() if device == "cuda" else "a trial on the CPU"
    python = ".".join(map(str, sys.version_info[:3]))
    return {"device": name, "torch": torch.__version__, "triton": triton, "python": python, "commit": commit()}


def main(argv: list[str] | None = None) -> int:
    """Run all parts and print the table; 0 if everything passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu-check")
    parser.add_argument("--seconds", type=float, default=570, help="for everything together")
    args = parser.parse_args(argv)
    deadline = time.monotonic() + args.seconds
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        print(f"gpu-check: nothing was checked: this PyTorch ({torch.__version__}) sees no GPU", file=sys.stderr)
        return 1
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    for old in (f"{name}.json" for name in ("bench_kernels", "bench_step", "summary")):
        (out / old).unlink(missing_ok=True)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    done = parts(out, args.device, {"tests": 300, "bench_kernels": 170, "bench_step": 200})
    if args.device == "cpu":
        environment["QUARTET_GPU_TESTS_DEVICE"] = "cpu"
    with tempfile.TemporaryDirectory(prefix="quartet_gpu_check_") as folder:
        if not is_importable():
            before = os.environ.get("PYTHONPATH")
            environment["PYTHONPATH"] = str(links(Path(folder, "site"))) + (os.pathsep + before if before else "")
        for part in done:
            run(part, out, environment, deadline)
    made = summary(done, described(args.device), out)
    text = table(made)
    (out / "summary.json").write_text(json.dumps(made, indent=1) + "\n")
    (out / "summary.txt").write_text(text + "\n")
    print(f"\n{text}\nwritten: {out}")
    return 0 if made["passed"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
