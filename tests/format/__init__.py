"""Tests of `fsqueue.format`: what names and bytes mean."""
