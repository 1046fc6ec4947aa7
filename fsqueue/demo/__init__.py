"""Online training of a draft head for a frozen language model, by processes that share only a directory.

Nothing here is imported by the rest of the package. `options` needs no torch; everything that does is loaded
by the processes that `run` starts. See `run.run_demo`.
"""
