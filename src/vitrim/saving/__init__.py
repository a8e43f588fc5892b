"""Model folders: writing them, reading them, and loading them with other libraries."""
