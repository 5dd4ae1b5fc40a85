"""Run by test_killed.py in processes of their own: train, and print the losses and a hash of the weights as JSON; or be
killed by SIGKILL at a moment. `python dying.py MOMENT FOLDER`; the moment `""` never comes. FOLDER: what is exported."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import signal
import sys
import types
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import torch._functorch._aot_autograd.autograd_cache as aot_cache
import torch._inductor.codecache as inductor_cache
import torch._inductor.cpp_builder as cpp_builder
from torch import nn

import quartet_compile as qc
from quartet_compile.kernels.cpu import loader
from quartet_compile.report import records
from quartet_compile.serving import shards


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def after(original: Callable, calls: int = 1) -> Callable:
    """`original`, after a number of calls of which the process dies."""
    left = calls

    def run(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        original(*args, **kwargs)
        left -= 1
        if not left:
            die()

    return run


def half_linked(part: str) -> Callable[[str, str], Any]:
    """A compiler that is killed with the process while it links what has this in its name: no header yet, nor the rest."""
    compile_ = cpp_builder.run_compile_cmd

    def run(command: str, cwd: str) -> Any:
        path = command.partition(" -o ")[2].split()[0]
        if part in path:
            pathlib.Path(path).write_bytes(bytes(4096))
            die()
        return compile_(command, cwd)

    return run


def half_written(path: str, content: str | bytes, *_: Any, **__: Any) -> None:
    """What `write_atomic` of Inductor leaves before it renames."""
    folder = pathlib.Path(path).parent
    folder.mkdir(parents=True, exist_ok=True)
    half = content[: len(content) // 2]
    (folder / f".{os.getpid()}.0.tmp").write_bytes(half.encode() if isinstance(half, str) else half)
    die()


def before_moving() -> types.SimpleNamespace:
    """`os`, for a module that is about to move what it has written to its name."""
    return types.SimpleNamespace(**{**vars(os), "replace": die})


MOMENTS: dict[str, tuple[Any, str, Any]] = {
    "the library is compiled": (loader, "run", after(loader.run)),
    "the library is moved": (loader, "os", before_moving()),
    "a report is moved": (records, "os", before_moving()),
    "Inductor writes": (inductor_cache, "write_atomic", half_written),
    "Inductor tries the CPU": (cpp_builder, "run_compile_cmd", half_linked(".so")),
    "Inductor links": (cpp_builder, "run_compile_cmd", half_linked(".main.so")),
    "Inductor has linked": (cpp_builder, "run_compile_cmd", after(cpp_builder.run_compile_cmd, 3)),
    "a graph is kept": (aot_cache.AOTAutogradCache, "save", die),
    "a shard is written": (shards.Shards, "_write", after(shards.Shards._write, 3)),
}
"""Whose attribute is replaced by what."""


def train(moment: str) -> tuple[list[float], nn.Module]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Dropout(0.1), nn.Linear(96, 64))
    function, losses = torch.compile(model, backend="quartet"), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(3):
        loss = function(torch.randn(2, 50, 64)).square().mean()
        if (moment, step) == ("backward", 1):
            model[0].weight.register_hook(die)
        loss.backward()
        if (moment, step) == ("the optimizer steps", 1):
            optimizer.register_step_post_hook(die)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, model


def main() -> None:
    moment, folder = sys.argv[1:]
    with mock.patch.object(*MOMENTS[moment]) if moment in MOMENTS else mock.MagicMock():
        losses, model = train(moment)
        qc.export(model, folder, format="compressed-tensors", inputs=(torch.randn(2, 50, 64),))
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()
    files = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(pathlib.Path(folder).iterdir())
    }
    print(json.dumps({"losses": [loss.hex() for loss in losses], "weights": digest, "files": files}))


if __name__ == "__main__":
    main()
