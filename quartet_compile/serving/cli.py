"""The command `export` of `python -m quartet_compile`."""

from __future__ import annotations

import argparse
import warnings

from .export import export
from .formats import FORMATS


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `export` to the commands of `python -m quartet_compile`."""
    text = "write a checkpoint's FP4 weights for other code to load, tensor by tensor"
    command = commands.add_parser("export", help=text, description=text[0].upper() + text[1:] + ".")
    command.set_defaults(run=run_export)
    command.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a folder with safetensors and config.json, of a causal language model"
    )
    command.add_argument("folder", metavar="FOLDER", help="a new folder")
    held = "; ".join(f"{each.name}: {each.holds}" for each in FORMATS.values())
    command.add_argument("--format", required=True, help=held)
    command.add_argument("--recipe", help="that it was trained with, a name or a TOML file; default: quartet")
    command.add_argument("--include", metavar="GLOB", action="append", help="as in training; repeatable")
    command.add_argument("--exclude", metavar="GLOB", action="append", help="as in training; repeatable")
    command.add_argument(
        "--unrotated", action="store_true", help="quantize without the recipe's rotation, and show what it costs"
    )
    command.add_argument(
        "--activations", metavar="FORMAT", help="that the server rounds activations to: mxfp4; default: high precision"
    )


def run_export(options: argparse.Namespace) -> str:
    """A table of what each tensor became."""
    given = {name: value for name in ("recipe", "include", "exclude") if (value := getattr(options, name))}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="quartet: exported as")  # the table ends with them
        how = dict(format=options.format, unrotated=options.unrotated, activations=options.activations, progress=True)
        return str(export(options.checkpoint, options.folder, **how, **given))
