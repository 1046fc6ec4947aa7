"""A real inference server on this host's CPU: how it is installed, started and killed."""
