"""Cross compilation: what a model becomes on a GPU, without the GPU."""
