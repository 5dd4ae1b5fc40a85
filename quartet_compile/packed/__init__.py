"""Frozen weights as FP4 codes in memory: packed (pack.py), held by their module (module.py), read from files (load.py)."""
