"""Models of Hugging Face's transformers.

`adapter` handles the library, `families` lists classes, `parts` layers. `loading` loads weights. `auto` makes
transformers load pruned models. `processors` reads how images are prepared.
"""
