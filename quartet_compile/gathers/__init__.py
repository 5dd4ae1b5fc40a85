"""FSDP2 gathers the codes of weights that are then quantized (fsdp.py); what then stands for a weight (weight.py)."""
