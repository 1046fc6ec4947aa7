"""Schedulers of one's own, runs of the recipes under them, and what happens to these: benchmarks/cluster.py."""
