"""Measurements of the cost of vitrim itself. `python -m benchmarks.speed` runs them and writes the tables."""
