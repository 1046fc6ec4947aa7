"""The control plane on files: a durable ledger of what was committed and acknowledged, and the controller over it."""
