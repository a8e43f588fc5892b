"""The training loop, with or without a teacher."""
