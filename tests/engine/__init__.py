"""Tests of `fsqueue.engine`: the protocol, seen through a queue on a directory."""
