"""Tests of `fsqueue.operate`: what people use to look, move and mend."""
