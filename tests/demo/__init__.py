"""Tests of `fsqueue.demo`."""
