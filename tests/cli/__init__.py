"""Tests of `fsqueue.cli`: the program, driven as a user does."""
