"""Distributed processes compute alike: each tells the others what it does, through the store of the default process group.

options.py   the options of the first compilation
gathers.py   what FSDP2 gathers as codes
steps.py     the recipes of each optimizer step, which `set_recipe` changes
switches.py  `set_recipe` where collectives depend on the recipe

Every error names the rank, the option and both values. A rank waits for another one only where the next collective would
wait for it too, and not for longer.
"""

from .gathers import check_gathers, say_gathers
from .options import check_ranks
from .switches import agree

__all__ = ["agree", "check_gathers", "check_ranks", "say_gathers"]
