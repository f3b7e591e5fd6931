"""Directions in a model's activations, for steering: made (`run`), saved and loaded (`files`)."""
