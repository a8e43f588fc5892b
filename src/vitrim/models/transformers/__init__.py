"""Models of Hugging Face's transformers."""
