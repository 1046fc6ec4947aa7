"""Tests of `fsqueue.disk`: mounts, counting, operations side by side, a full disk."""
