"""torchvision's models: `adapter` handles the library, `families` lists models and sizes, `parts` their blocks."""
