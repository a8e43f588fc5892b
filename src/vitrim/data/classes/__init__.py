"""Names of classes and their order."""
