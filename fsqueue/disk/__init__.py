"""Touch files: the only folder whose modules call the operating system about them."""
