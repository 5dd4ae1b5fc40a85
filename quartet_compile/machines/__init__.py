"""The GPUs that a model can be trained on or compiled for: what a chip can do, and the least time that work takes on it."""
