"""Run the `fsqueue` program: its commands, its exit codes, and what becomes of errors.

Exit codes: 0 ok, 1 failed or found damage, 2 usage, 3 not a queue or unknown format, 4 timed out, 130 interrupted,
141 the reader of the output went away.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from fsqueue import __version__
from fsqueue.errors import FsQueueError, NotAQueueError

FAILED, NOT_A_QUEUE, TIMED_OUT, INTERRUPTED, CLOSED_PIPE = 1, 3, 4, 130, 141

COMMANDS = {
    "init": ("fsqueue.cli.init:init", "Create a queue."),
    "status": ("fsqueue.cli.status:status", "Counts, ages, owners, and rates."),
    "ls": ("fsqueue.cli.ls:ls", "List refs, pending ones in the order in which they come."),
    "show": ("fsqueue.cli.show:show", "Everything about one ref."),
    "put": ("fsqueue.cli.put:put", "Put refs from a JSON Lines file."),
    "requeue": ("fsqueue.cli.requeue:requeue", "Move failed or done refs back to pending."),
    "rewind": ("fsqueue.cli.rewind:rewind", "Put back what was acked after a checkpoint."),
    "release": ("fsqueue.cli.release:release", "Take the leases of a dead node back, now."),
    "purge": ("fsqueue.cli.purge:purge", "Remove old files from done or failed."),
    "pack": ("fsqueue.cli.pack:pack", "Put old done files together into few."),
    "check": ("fsqueue.cli.check:check", "Find damage, and repair it."),
    "top": ("fsqueue.cli.top:top", "Watch a queue live."),
    "doctor": ("fsqueue.cli.doctor:doctor", "Find out what the filesystem can do for a queue."),
    "demo": ("fsqueue.cli.demo:demo", "Train a draft head online through a queue."),
}


class _ClosedPipeError(Exception):
    """Say that whoever read the output has enough of it."""


class Program(click.Group):
    """Import a command when it is called, and turn errors into one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of commands, without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise _ClosedPipeError from None

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        code = self._run(args, prog_name, complete_var, extra)
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            code = CLOSED_PIPE
        if code == CLOSED_PIPE:
            _discard_output()
        sys.exit(code)

    def _run(
        self, args: Sequence[str] | None, prog_name: str | None, complete_var: str | None, extra: dict[str, Any]
    ) -> int:
        try:
            code = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        except click.ClickException as error:
            error.show()
            return error.exit_code
        except (click.Abort, KeyboardInterrupt):
            return INTERRUPTED
        except _ClosedPipeError:
            return CLOSED_PIPE
        except FsQueueError as error:
            click.echo(f"Error: {error}", err=True)
            return _code_of(error)
        except SystemExit as done:
            code = done.code
        return code if isinstance(code, int) else 0


def _code_of(error: FsQueueError) -> int:
    if isinstance(error, NotAQueueError):
        return NOT_A_QUEUE
    return TIMED_OUT if isinstance(error, TimeoutError) else FAILED


def _discard_output() -> None:
    """Let what is still buffered go nowhere, so that the interpreter does not complain at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@click.group(cls=Program, epilog="Example:  fsqueue status /shared/queue")
@click.version_option(__version__, message="fsqueue %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """A durable, exclusive, cross-process queue that needs nothing but a directory.

    QUEUE is its directory. Every command takes it as its first argument, by --queue, or from $FSQUEUE_DIR.

    \b
    Exit codes: 0 ok, 1 failed or found damage, 2 usage, 3 not a queue or
    unknown format, 4 timed out, 130 interrupted, 141 the output was closed.
    """
    if os.environ.get("NO_COLOR"):
        ctx.color = False


def main() -> None:
    """Run the program."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    cli(prog_name="fsqueue")


if __name__ == "__main__":
    main()
