"""Hold the `fsqueue` program: one module a command, each imported when it is called."""
