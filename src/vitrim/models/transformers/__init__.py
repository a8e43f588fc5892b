"""Models of Hugging Face's transformers: `adapter` handles the library, `families` lists classes, `parts` layers."""
