"""The parts of benchmarks/cluster.py: schedulers of its own, runs of the recipes under them, and what happens to them."""
