"""Run the `fsqueue` program: its commands, its exit codes, and what becomes of errors.

Exit codes: 0 ok, 1 failed or found damage, 2 usage, 3 not a queue or unknown format, 4 timed out, 130 interrupted,
141 the reader of the output went away.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

import click

from fsqueue import __version__
from fsqueue.cli.output import remark
from fsqueue.errors import FsQueueError, NotAQueueError

LOG_VARIABLE = "FSQUEUE_LOG"
_LEVELS = ("debug", "info", "warning", "error")
FAILED, NOT_A_QUEUE, TIMED_OUT, INTERRUPTED, CLOSED_PIPE = 1, 3, 4, 130, 141
_REFUSED = (errno.EBADF, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)

COMMANDS = {
    "init": "Create a queue.",
    "status": "Counts, ages, owners, and rates.",
    "config": "Show and change what a queue stores.",
    "ls": "List refs, pending ones in the order in which they come.",
    "show": "Everything about one ref.",
    "put": "Put refs from a JSON Lines file.",
    "capture": "Have a server's hidden states over prompts stored and put.",
    "requeue": "Move failed or done refs back to pending.",
    "discard": "Move stale pending refs to failed.",
    "rewind": "Put back what was acked after a checkpoint.",
    "release": "Take the leases of a dead node back, now.",
    "pause": "Let nobody lease refs, for a while.",
    "resume": "Let a paused queue go on.",
    "purge": "Remove old files from done or failed.",
    "pack": "Put old done files together into few.",
    "check": "Find damage, and repair it.",
    "audit": "Which samples are in a checkpoint, and how often.",
    "report": "A page on how a run went.",
    "metrics": "Export queues to Prometheus.",
    "top": "Watch a queue live.",
    "doctor": "Find out what the filesystem can do for a queue.",
    "demo": "Train a draft head online through a queue.",
}


class _ClosedPipeError(Exception):
    """Say that whoever read the output has enough of it."""


class Program(click.Group):
    """Import a command when it is called, and turn errors into one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            meant = difflib.get_close_matches(cmd_name, COMMANDS, 1)
            raise click.UsageError(
                f"There is no command {cmd_name!r}" + (f": did you mean {meant[0]!r}?" if meant else "."), ctx
            )
        command: click.Command = getattr(importlib.import_module(f"fsqueue.cli.{cmd_name}"), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of commands, without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        with _telling_of_the_output():
            return super().invoke(ctx)

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        with _telling_of_the_output():  # --help is printed here
            return super().make_context(*args, **options)

    def main(self, *args: Any, **options: Any) -> Any:
        if not options.get("standalone_mode", True):
            return super().main(*args, **options)
        code = self._run(*args, **options)
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            code = CLOSED_PIPE
            _discard(sys.stdout)
        except OSError as error:
            if not code:
                remark(f"Error: {_unwritable(error)}")
            code = code or FAILED
            _discard(sys.stdout)
        try:
            sys.stderr.flush()
        except OSError:
            _discard(sys.stderr)
        sys.exit(code)

    def _run(self, *args: Any, **options: Any) -> int:
        options["standalone_mode"] = False
        try:
            code = super().main(*args, **options)
        except click.ClickException as error:
            with suppress(OSError):  # stderr is closed or full: the code tells
                error.show()
            return error.exit_code
        except (click.Abort, KeyboardInterrupt):
            return INTERRUPTED
        except _ClosedPipeError:
            return CLOSED_PIPE
        except FsQueueError as error:
            remark(f"Error: {error}")
            return _code_of(error)
        except SystemExit as done:
            code = done.code
        return code if isinstance(code, int) else 0


def _code_of(error: FsQueueError) -> int:
    if isinstance(error, NotAQueueError):
        return NOT_A_QUEUE
    return TIMED_OUT if isinstance(error, TimeoutError) else FAILED


@contextmanager
def _telling_of_the_output() -> Iterator[None]:
    """Turn what stdout refuses into an end of the program that says so."""
    try:
        yield
    except BrokenPipeError:
        raise _ClosedPipeError from None
    except OSError as error:
        if isinstance(error, FsQueueError) or error.filename is not None or error.errno not in _REFUSED:
            raise
        raise click.ClickException(_unwritable(error)) from None


def _unwritable(error: OSError) -> str:
    return f"cannot write to stdout: {error.strerror}; what was done until then stays done"


def _discard(stream: TextIO) -> None:
    """Let what is still buffered go nowhere, so that the interpreter does not complain at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _open_what_is_closed() -> None:
    """Open /dev/null for each standard stream that the caller has closed, so that no file of a queue gets its number.

    stdin is empty then, stdout refuses what is written, and stderr swallows it.
    """
    for fd, name, flags in ((0, "stdin", os.O_RDONLY), (1, "stdout", os.O_RDONLY), (2, "stderr", os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            opened = os.open(os.devnull, flags)
            if opened != fd:
                os.dup2(opened, fd)
                os.close(opened)
            os.set_inheritable(fd, True)
        if getattr(sys, name) is None:
            stream = open(fd, "w" if fd else "r", encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)


@click.group(
    cls=Program,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example:  fsqueue status /shared/queue",
)
@click.version_option(__version__, message="fsqueue %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """A durable, exclusive, cross-process queue that needs nothing but a directory.

    QUEUE is its directory. Every command takes it as its first argument, by --queue, or from $FSQUEUE_DIR.

    \b
    Exit codes: 0 ok, 1 failed or found damage, 2 usage, 3 not a queue or
    unknown format, 4 timed out, 130 interrupted, 141 the output was closed.

    \b
    Completion of commands and directories, in bash (zsh, fish: by their names):
    eval "$(_FSQUEUE_COMPLETE=bash_source fsqueue)"
    """
    if os.environ.get("NO_COLOR"):
        ctx.color = False
    _show_the_log(os.environ.get(LOG_VARIABLE))


def _show_the_log(level: str | None) -> None:
    """Print what the loggers say from a level on to stderr; warnings come there anyway."""
    if not level:
        return
    if level.lower() not in _LEVELS:
        raise click.UsageError(f"${LOG_VARIABLE} is {level!r}: use one of {', '.join(_LEVELS)}.")
    import logging

    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("fsqueue").setLevel(level.upper())


def main() -> None:
    """Run the program."""
    _open_what_is_closed()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    cli(prog_name="fsqueue")


if __name__ == "__main__":
    main()
