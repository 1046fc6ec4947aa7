"""The parts of verify_filesystem.py: the two sides, and the checks of files, queues and leases."""
