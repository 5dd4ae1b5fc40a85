"""Run by test_cache.py in processes of their own: train one step, print what happened as JSON."""

import hashlib
import json
import sys

import torch
from models import Net, gradients
from torch._dynamo.utils import counters

import quartet_compile as qc
from quartet_compile import backend
from quartet_compile.process import process
from quartet_compile.report import records

settings = json.loads(sys.argv[1])
if settings.get("no_fp4"):
    Net.forward = qc.no_fp4(Net.forward)
if settings.get("sources"):
    backend.sources_hash = lambda: settings["sources"]

used = []
read = records.read
records.read = lambda uuid: used.append(uuid) or read(uuid)

torch.manual_seed(0)
model, x = Net(blocks=1, dropout=0.1), torch.randn(2, 50, 64)
options = settings.get("options") or {}
function = torch.compile(model, backend="quartet", options=options)
y, grads = gradients(model, x, function=function)
digest = hashlib.sha256(b"".join(t.numpy().tobytes() for t in (y, *grads.values()))).hexdigest()
sites = [(s.name, s.rewritten, s.reason) for uuid in used for graph in read(uuid) for s in graph.sites]
print(
    json.dumps(
        {
            "digest": digest,
            "sites": sites,
            "stats": qc.stats(model).scalars() if options.get("stats") else None,
            "kept": len(process.weights),
            "hits": counters["aot_autograd"]["autograd_cache_hit"],
            "misses": counters["aot_autograd"]["autograd_cache_miss"],
        }
    )
)
