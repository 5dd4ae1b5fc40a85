"""Every architecture of the installed transformers, tiny and random, through one training step with and without us: is
every gradient right, which matmuls are rewritten, and does `explain` say so?

    python examples/survey.py                               all of them, into docs/survey.md; takes about an hour on one core
    python examples/survey.py --only llama t5 --out runs/two.jsonl --docs runs/two.md   two of them

Each architecture has a process of its own, with limits of time and memory. What is done is in the file of results, and is
not done again. Rewriting is checked under the recipe `exact`, which rounds nothing, on the graphs as they are, without
Inductor. A gradient is right if it differs from the untouched model's by no more than rounding does: see `tolerance` in
survey_step.py.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import pathlib
import resource
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.pool import ThreadPool
from typing import Any

import tiny_models
import torch
from survey_page import line_of, page, summary
from survey_step import compiled_gradients, quiet, stages

GIGABYTES = 12


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    results = pathlib.Path(options.out)
    results.parent.mkdir(parents=True, exist_ok=True)
    done = read(results)
    wanted = options.only or list(tiny_models.architectures())
    missing = [name for name in wanted if name not in done][: options.limit]
    load()
    with open(results, "a") as file, ThreadPool(options.jobs) as pool:
        for result in pool.imap_unordered(lambda name: in_a_process(name, options.timeout), missing):
            done[result["name"]] = result
            file.write(json.dumps(result) + "\n")
            file.flush()
            print(line_of(result), flush=True)
    found = [done[name] for name in wanted if name in done]
    print("\n".join(summary(found)))
    pathlib.Path(options.docs).write_text(page(found))


def read(path: pathlib.Path) -> dict[str, dict]:
    """The results of a file, the last of each architecture."""
    if not path.exists():
        return {}
    return {result["name"]: result for result in map(json.loads, path.read_text().splitlines())}


def load() -> None:
    """Load what every process that is forked from this one needs."""
    tiny_models.architectures()
    quiet()
    torch.set_num_threads(1)
    layer = torch.nn.Linear(64, 64)
    compiled_gradients(layer, {"input": torch.randn(32, 64)}, "exact")


def in_a_process(name: str, seconds: float) -> dict:
    """`stages(name)` in a process forked from this one, which has torch and transformers loaded, under limits."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_worker, args=(name, theirs))
    start = time.monotonic()
    process.start()
    theirs.close()
    result = {"name": name, "stage": "built"}
    with contextlib.suppress(EOFError):  # the process is gone
        while ours.poll(max(0.0, seconds - (time.monotonic() - start))):
            result = ours.recv()
            if result.get("finished"):
                break
    if not result.get("finished"):
        gone = not process.is_alive() or ours.poll(0)
        result["error"] = f"the process died after {result['stage']}" if gone else f"more than {seconds:.0f} s"
    process.kill()
    process.join()
    return {**result, "seconds": round(time.monotonic() - start, 1)}


def _worker(name: str, connection: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (GIGABYTES << 30, GIGABYTES << 30))
    torch.set_num_threads(1)
    quiet()
    result: dict[str, Any] = {}
    for result in stages(name):
        connection.send(result)
    connection.send({**result, "finished": True})


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="folders of transformers/models")
    parser.add_argument("--limit", type=int, help="at most so many that have no result yet")
    parser.add_argument("--timeout", type=float, default=90, help="the most seconds that one architecture may take")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--out", default="runs/survey.jsonl", help="the file of results, to go on from")
    parser.add_argument("--docs", default="docs/survey.md", help="the page")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
