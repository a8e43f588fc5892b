"""A benchmark that fits a given time: `python -m benchmarks.timebox --seconds 800 --model vit-s -o OUT`.

It measures the speed of training, chooses the numbers of epochs, runs the arms in order of importance, and packs
the results into a few small files. docs/gpu.md shows how it runs on a machine that can be had for some minutes.
"""
