"""Puts the model of a finished run on the Hugging Face Hub, with a model card."""
