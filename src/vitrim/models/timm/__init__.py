"""timm's models: `adapter` knows the library, `families` the classes of models, `parts` what a block is made of."""
