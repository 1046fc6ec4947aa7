"""Tests of `fsqueue.disk`: mounts, counting, operations in parallel, a full disk."""
