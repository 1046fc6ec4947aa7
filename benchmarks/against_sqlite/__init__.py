"""A queue and a ledger in SQLite with fsqueue's contracts, to measure it against."""
