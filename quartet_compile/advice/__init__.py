"""Should this model be trained in FP4, on that machine? Predicted for each recipe, and measured where asked."""
