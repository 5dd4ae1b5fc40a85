"""Run a function on several processes of one gloo group: `run_ranks("sharded:fsdp", world, ...)`."""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).parent


def run_ranks(function: str, world: int, *arguments: object, timeout: int = 900) -> list:
    """What `module:function(*arguments)` returns on each rank, as JSON; an error of a rank is raised with its output."""
    path = os.pathsep.join([str(HERE), str(HERE.parents[1] / "examples")])
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(HERE / "ranks.py"), function, str(world), folder, json.dumps(arguments)]
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        ranks = [subprocess.Popen([*command, str(rank)], env=environment, **pipes) for rank in range(world)]
        try:
            outputs = [process.communicate(timeout=timeout) for process in ranks]
        finally:
            for process in ranks:
                process.kill()
        for process, (_, errors) in zip(ranks, outputs, strict=True):
            assert process.returncode == 0, errors[-6000:]
        return [json.loads(pathlib.Path(folder, f"{rank}.json").read_text()) for rank in range(world)]


def main() -> None:
    function, world, folder, arguments, rank = sys.argv[1:]
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=int(rank), world_size=int(world))
    module, _, name = function.partition(":")
    result = getattr(importlib.import_module(module), name)(*json.loads(arguments))
    pathlib.Path(folder, f"{rank}.json").write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
