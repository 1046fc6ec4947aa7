"""Packed refs: done files that become lines of a segment, and how they leave it."""
