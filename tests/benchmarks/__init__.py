"""Tests of the benchmarks, run as a user runs them."""
