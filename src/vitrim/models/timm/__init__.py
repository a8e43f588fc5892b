"""timm's models: `adapter` handles the library, `families` lists model classes, `parts` lists attentions and MLPs."""
