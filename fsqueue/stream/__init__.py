"""The stream around a queue: its members, its watermarks, its end, and ranks that share it."""
