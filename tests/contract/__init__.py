"""The contract of a queue, held by every implementation: in a directory, in memory, in SQLite."""
