"""What happens to a joint graph, in this order.

    match        find the forward products, and for each its two backward ones
    others       find the products that are never rewritten, for the report
    plan         decide which sites are rewritten, with a reason for each
    forward      X and W of each site to low precision, shared between sites; their product
    backward     dY, W^T and X^T; dgrad and wgrad
    stats        what the graph measures of itself, if asked to
    wire         codes instead of matrices where ranks gather what is quantized, if asked to
    weight_cache what is made of weights is kept while their values are the same, if asked to
    silu         on a GPU, the sigmoid that SiLU and its gradient share

The first three look at the graph, the others change it, and after each of these it is checked (verify.py).
"""

from __future__ import annotations

from . import backward, forward, match, others, plan, silu, stats, weight_cache, wire
from .pipeline import Pass

PIPELINE = (
    Pass("match", match.apply),
    Pass("others", others.apply),
    Pass("plan", plan.apply),
    Pass("forward", forward.apply, changes=True),
    Pass("backward", backward.apply, changes=True),
    Pass("stats", stats.apply, changes=True),
    Pass("wire", wire.apply, changes=True),
    Pass("weight_cache", weight_cache.apply, changes=True),
    Pass("silu", silu.apply, changes=True),
)
