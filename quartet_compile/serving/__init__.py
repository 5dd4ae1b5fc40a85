"""Trained here, served there: FP4 weights as files that other code loads."""
