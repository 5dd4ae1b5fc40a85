"""What `backend="quartet"` does to a model, before anything is compiled: three reports and a diff of a small Llama.

    python examples/explain_model.py
    python examples/explain_model.py --size 7B --device meta          no memory for weights or activations either

Nothing is computed, so it takes seconds at any size and on any machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from llama import SIZES, VOCABULARY, Llama
from torch import nn

import quartet_compile as qc


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    size = SIZES[options.size]
    with torch.device(options.device):
        model = Llama(size)
        tokens = torch.zeros(options.batch, size.seq, dtype=torch.long)

    title("Every matmul, under the default rules: output heads and attention stay in high precision")
    print(qc.explain(model, tokens))

    title("Patterns choose: the first block and all down projections are kept, and the head is rewritten")
    patterns = {"include": ["*"], "exclude": ["layers.0", "*.down_proj"]}
    report = qc.explain(model, tokens, **patterns)
    for reason, names in by_reason(report).items():
        print(f"{len(names):4} x {reason:45} {names[0]}{', ...' * (len(names) > 1)}")

    title("In inference, what the first MLP computes")
    width = size.width
    with torch.no_grad(), torch.device(options.device):
        print(qc.graph_diff(model.layers[0].mlp, torch.empty(options.batch, size.seq, width)))

    title("One linear layer in training: forward, and both gradients")
    with torch.device(options.device):
        linear, x = nn.Linear(width, VOCABULARY, bias=False), torch.empty(size.seq, width, requires_grad=True)
    print(qc.graph_diff(linear, x))


def by_reason(report: qc.Report) -> dict[str, list[str]]:
    """The names of a report's matmuls by decision and reason."""
    groups: dict[str, list[str]] = {}
    for site in report.sites:
        groups.setdefault(f"{'fp4' if site.rewritten else 'kept'}: {site.reason}", []).append(site.name)
    return groups


def title(text: str) -> None:
    print(f"\n{text}\n{'=' * len(text)}\n")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="test")
    parser.add_argument("--batch", type=int, default=4, help="sequences")
    parser.add_argument("--device", default="cpu", help="where the model is; meta: nowhere, so that any size fits")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
