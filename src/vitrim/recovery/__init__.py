"""Closed-form recovery of a model after a cut, without training."""
