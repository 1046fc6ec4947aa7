"""Tests of `fsqueue.features`."""
