"""Export a model to a file: checks of the settings, comparison with the model, timing, metadata."""
