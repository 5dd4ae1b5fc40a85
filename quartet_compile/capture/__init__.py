"""A model's graphs without compiling it: what `explain` and cross compilation start from."""
