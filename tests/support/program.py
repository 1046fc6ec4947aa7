"""The program: how to start it, and how to call it in this process."""

from __future__ import annotations

import sys

from click.testing import CliRunner, Result

from fsqueue.cli.main import cli

PROGRAM = [sys.executable, "-m", "fsqueue.cli.main"]


def run(*arguments: object, stdin: str | bytes | None = None) -> Result:
    """Call the program in this process."""
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], input=stdin)
