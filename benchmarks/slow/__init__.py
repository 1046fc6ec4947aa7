"""The slow mount of slow_mount.py, and the naive protocol that runs on it beside the queue."""
