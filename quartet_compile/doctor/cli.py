"""The command `doctor`: what is found on this machine; for bug reports.

    python -m quartet_compile doctor
    python -m quartet_compile doctor --json

The exit code is 1 where a check has failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json

from ..tables import aligned


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `doctor` to the commands of `python -m quartet_compile`."""
    text = "what this machine runs it on, how fast, and whether it computes the right bits here; for bug reports"
    command = commands.add_parser("doctor", help=text, description=text[0].upper() + text[1:] + ".")
    command.add_argument("--json", action="store_true", help="machine-readable output")
    command.set_defaults(run=run_doctor)


def run_doctor(options: argparse.Namespace) -> str:
    """A line for each check; `options.code` is the exit code afterwards."""
    from .checks import FAILED, examine

    found = examine()
    options.code = int(any(check.state == FAILED for check in found))
    if options.json:
        return json.dumps([dataclasses.asdict(check) for check in found], indent=1)
    return "\n".join(aligned([(check.name, check.state, check.found) for check in found]))
