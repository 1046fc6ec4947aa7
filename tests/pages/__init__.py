"""Tests of the pages: what they show is run."""
