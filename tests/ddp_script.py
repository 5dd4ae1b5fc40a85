"""Run by test_distributed.py as one rank: a DDP step under the recipe `exact` against the whole batch on one process,
and the noise of `quartet` on each rank."""

import json
import sys

import torch
import torch.distributed as dist
from models import Net, gradients, relative
from torch.nn.parallel import DistributedDataParallel

rank, world, store, break_graph = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4] == "break"
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)

torch.manual_seed(0)
model, x = Net(blocks=2, break_graph=break_graph, hidden=4096), torch.randn(2 * world, 25, 64)
_, whole = gradients(model, x)

replica = DistributedDataParallel(model, bucket_cap_mb=1)
function = torch.compile(replica, backend="quartet", options={"recipe": "exact"})
_, averaged = gradients(model, x[2 * rank : 2 * rank + 2], function=function)
error = max(relative(world * averaged[name], whole[name]) for name in whole)

torch.manual_seed(0)
seed = torch.ops.quartet.seed(1, torch.device("cpu"), []).item()
print(json.dumps({"error": error, "missing": sorted(whole.keys() - averaged.keys()), "seed": seed}))
dist.destroy_process_group()
