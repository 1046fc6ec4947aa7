"""What other software needs to work with a queue, tried with that software."""
