"""What other software needs to work with a queue; each module imports that software, and nothing else here does."""
