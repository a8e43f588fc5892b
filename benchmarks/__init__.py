"""The benchmark: vitrim compared with the published method, with its own parts, and with other small models.

`python -m benchmarks.run CONFIG -o OUT` runs one cell. `python -m benchmarks.table OUT` makes the tables.
`python -m benchmarks.speed` measures the cost of vitrim itself.
"""
