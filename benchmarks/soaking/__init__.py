"""The parts of soak.py: its directory, workers, chaos, history and report."""
