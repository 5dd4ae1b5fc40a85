"""Make the shared helpers of tests/ and the baselines of examples/ importable."""

import pathlib
import sys

ROOT = pathlib.Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "examples")]

import torch  # noqa: E402

torch.set_num_threads(1)  # small tensors: two threads make the reference 10 times slower on two busy cores
