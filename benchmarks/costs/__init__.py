"""What vitrim itself costs, each as a ratio measured in one run: `python -m benchmarks.speed` prints and keeps them."""
