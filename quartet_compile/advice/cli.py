"""The command `advise`: should this model be trained in FP4, on this or that machine?

python -m quartet_compile advise model.py:build --target sm_100 --tokens 15T --gpus 8 --html advice.html
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Callable
from typing import Any

from ..law.cli import count, whole

Call = Callable[..., Any]


def add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    add_model: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace], str],
) -> None:
    """Adds `advise` to the commands. add_model: adds the arguments of a model. run: what runs the command."""
    text = "whether to train a model in FP4 on a machine: predicted times, what pays, memory, the loss gap, a verdict"
    command = commands.add_parser("advise", help=text, description=text[0].upper() + text[1:] + ".")
    command.set_defaults(run=run)
    add_model(command)
    command.add_argument("--target", help="as of cross-compile; default: the GPU that is here, else sm_100")
    command.add_argument("--tokens", type=count, help="of the whole training, as 15T; without it, no loss gap")
    command.add_argument("--gpus", type=whole, default=1, help="in data parallel (default: 1)")
    command.add_argument("--recipes", metavar="NAMES", help="to compare, with commas (default: quartet,quartet2,mxfp8)")
    command.add_argument("--measure", action="store_true", help="also train a few steps here")
    command.add_argument("--html", metavar="FILE", type=pathlib.Path, help="also write a page")


def run_advise(options: argparse.Namespace, call: Call) -> str:
    """The advice as text or JSON. call: calls a function with the model, its inputs and what is given."""
    from .advise import advise

    names = options.recipes.split(",") if options.recipes else None
    how = dict(target=options.target, tokens=options.tokens, gpus=options.gpus, recipes=names, measure=options.measure)
    advice = call(advise, progress=True, **how)
    if options.html:
        options.html.write_text(advice.to_html(), encoding="utf-8")
    return str(advice.to_json() if options.json else advice)
