"""Say what names and bytes mean: pure functions, no I/O."""
