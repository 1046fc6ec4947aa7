"""``python -m fsqueue``: the command line."""

from fsqueue.cli.main import main

main()
