"""What the pass costs in the compilation of large models: `python examples/bench_scale.py --models llama-3-8b olmoe-7b`.

Models are built without memory (their parameters are never written, so no page of them exists) and take the whole path to
generated source for a B200: Dynamo, AOTAutograd, the pass, the partitioner, Inductor's lowering and code generation.
Nothing is run, and Triton compiles nothing. Each row is a process of its own; `pass s` is the time inside of the pass,
`memory` what the pass added to the process.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import time
from unittest import mock

MODELS = {
    "llama-3-8b": {"layers": (4, 8, 16, 32), "seq": 2048},
    "olmoe-7b": {"layers": (4, 8, 16), "seq": 2048},
    "llama-3-70b, a block": {"layers": (1, 2), "seq": 2048},
}
COLUMNS = ("model", "layers", "parameters", "rewritten", "nodes", "pass s", "whole s", "pass", "memory MB", "peak MB")


def build(name: str, layers: int):
    """A model with parameters that are allocated and not written, in bfloat16."""
    import torch
    import transformers as hf

    if name == "olmoe-7b":  # 64 experts, 8 a token
        config, kind = hf.OlmoeConfig(num_hidden_layers=layers), hf.OlmoeForCausalLM
    else:
        wide = name.startswith("llama-3-70b")
        config, kind = (
            hf.LlamaConfig(
                vocab_size=128256,
                hidden_size=8192 if wide else 4096,
                intermediate_size=28672 if wide else 14336,
                num_hidden_layers=layers,
                num_attention_heads=64 if wide else 32,
                num_key_value_heads=8,
            ),
            hf.LlamaForCausalLM,
        )
    config.use_cache = False
    with torch.device("meta"):
        model = kind(config).to(torch.bfloat16)
    return model.to_empty(device="cpu")


def measure(name: str, layers: int) -> dict:
    """One row: compiles the model in this process."""
    import torch

    from quartet_compile._compat.fake_gpu import code_only, scratch_folder
    from quartet_compile.capture.call import Call
    from quartet_compile.capture.capture import run_on_fakes
    from quartet_compile.config.options import configure
    from quartet_compile.cross.backend import CrossBackend
    from quartet_compile.machines.targets import find_target
    from quartet_compile.passes.joint import QuartetPass

    model = build(name, layers)
    ids = torch.zeros(1, MODELS[name]["seq"], dtype=torch.long)
    spent, nodes, grown, original = [], [], [], QuartetPass.__call__

    def timed(self, graph):
        before, started = _resident(), time.perf_counter()
        nodes.append(len(graph.nodes))
        original(self, graph)
        spent.append(time.perf_counter() - started)
        grown.append(_resident() - before)

    def step(ids):
        return model(input_ids=ids, labels=ids).loss

    backend = CrossBackend(configure({}), find_target("sm_100"))
    started = time.perf_counter()
    with (
        mock.patch.object(QuartetPass, "__call__", timed),
        scratch_folder() as folder,
        code_only(folder, backend.on_joint_graph),
    ):
        run_on_fakes(Call(step, (ids,)), backend)
    whole = time.perf_counter() - started
    sites = [site for graph in backend.graphs for site in graph.sites]
    return {
        "model": name,
        "layers": layers,
        "parameters": f"{sum(p.numel() for p in model.parameters()) / 1e9:.2f} B",
        "rewritten": f"{sum(site.rewritten for site in sites)} of {len(sites)}",
        "nodes": sum(nodes),
        "pass s": round(sum(spent), 2),
        "whole s": round(whole, 1),
        "pass": f"{100 * sum(spent) / whole:.1f} %",
        "memory MB": round(sum(grown) / 1e6),
        "peak MB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
    }


def _resident() -> int:
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--layers", nargs="+", type=int, help="instead of each model's own list")
    parser.add_argument("--row", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.row:
        print(json.dumps(measure(options.row[0], int(options.row[1]))))
        return
    print("| " + " | ".join(COLUMNS) + " |\n|" + "-|" * len(COLUMNS), flush=True)
    for name in options.models:
        for layers in options.layers or MODELS[name]["layers"]:
            command = [sys.executable, __file__, "--row", name, str(layers)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{name} with {layers} layers failed:\n{done.stderr[-3000:]}")
            row = json.loads(done.stdout.splitlines()[-1])
            print("| " + " | ".join(str(row[column]) for column in COLUMNS) + " |", flush=True)


if __name__ == "__main__":
    main()
