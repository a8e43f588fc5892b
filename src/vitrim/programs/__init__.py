"""Programs: a model written to a file for another runtime, and read back as a function."""
