"""The benchmark: what `vitrim` is worth, against the published method, its parts, and models that were small at once.

`python -m benchmarks.run CONFIG -o OUT` runs one cell; `python -m benchmarks.table` makes the tables.
"""
