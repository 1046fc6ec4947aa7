"""Tests of `fsqueue.stream`."""
