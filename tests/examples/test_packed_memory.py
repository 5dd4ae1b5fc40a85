"""The example that measures the memory of packed weights, in a process of its own."""

import pathlib
import re
import subprocess
import sys

EXAMPLE = pathlib.Path(__file__).parents[2] / "examples/packed_memory.py"


def test_packed_weights_take_less_than_a_third():
    """4.25 bits of 16 are .27; the embedding table is not packed."""
    done = subprocess.run([sys.executable, EXAMPLE, "--size", "test"], capture_output=True, text=True, check=True)
    found = re.search(r"11M parameters: bfloat16 (\d+) MiB, packed (\d+),", done.stdout)
    assert found and int(found[1]) >= 20 and int(found[2]) < int(found[1]) / 3, done.stdout
