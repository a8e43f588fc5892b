"""Images: find, decode, divide, prepare and batch them. Nothing here trains or evaluates a model."""
