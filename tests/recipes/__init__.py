"""The recipes: the programs, run as files by real processes, and what launches them."""
