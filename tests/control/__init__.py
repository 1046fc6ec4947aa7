"""Tests of `fsqueue.control`: controllers and their ledgers."""
