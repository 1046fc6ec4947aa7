"""Show how far a long command has come, print what it has done at once, and say on Ctrl-C how far it came.

A bar with rate and time left where stderr is a terminal, a line every few seconds elsewhere, nothing with --quiet;
and nothing while a command is over before anybody could ask. The bar is rich's, which is loaded when one is due.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import click

from fsqueue.cli.output import age, count, data, remark

if TYPE_CHECKING:
    from fsqueue.cli.bar import Bar

INTERRUPTED = 130
BAR_AFTER_S = 0.3
LINE_EVERY_S = 5.0
_LOOK_EVERY_S = 0.05

quiet = click.option("--quiet", is_flag=True, help="Say nothing on stderr while all goes well.")


class Working:
    """Show one long piece of work.

    Attributes:
        done, total: how far it has come; the total is None where it is not known.
    """

    def __init__(self, doing: str, noun: str, hushed: bool) -> None:
        self.done = 0
        self.total: int | None = None
        self._begun = 0
        self._doing = doing
        self._noun = noun
        self._hushed = hushed
        self._terminal = sys.stderr.isatty()
        self._beside = self._terminal and _is_one_terminal()
        self._began = time.monotonic()
        self._first: tuple[float, int] | None = None
        self._next = self._began + (BAR_AFTER_S if self._terminal else LINE_EVERY_S)
        self._bar: Bar | None = None
        self._lines: list[str] = []

    def progress(self, done: int, total: int | None) -> None:
        """Take note of how far it has come, and show it where it is time to."""
        self.done, self.total = done, total
        if total is not None and (self._first is None or done < self._first[1]):
            self._first = time.monotonic(), done
        if not self._hushed and time.monotonic() >= self._next:
            self._show()

    def step(self, doing: str) -> None:
        """Begin with the next of several steps, which may take long: a bar says at once what it is."""
        self._doing = doing
        if self._terminal:
            self._next = self._began
        self.progress(self._begun, self.total)
        self._begun += 1

    def data(self, line: str) -> None:
        """Print a line of the command's result, above the bar where both are on one terminal."""
        if self._beside and not self._hushed:
            self._lines.append(line)
            if self._bar is None:
                self._flush()
        else:
            data(line)

    def remark(self, line: str) -> None:
        """Print a line for the person in front of it, above the bar."""
        if self._bar is not None:
            self._flush()
            self._bar.above(line)
        else:
            remark(line)

    def text(self) -> str:
        """Say how far it has come."""
        if self.total is None:
            return f"{count(self.done, self._noun)}"
        return f"{self.done:,} of {count(self.total, self._noun)}"

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._flush()
            self._bar.close()
            self._bar = None
        self._flush()

    def _show(self) -> None:
        if not self._terminal:
            self._next = time.monotonic() + LINE_EVERY_S
            with suppress(BrokenPipeError):
                remark(f"{self._doing}: {self.text()}{self._pace()}")
            return
        self._next = time.monotonic() + _LOOK_EVERY_S
        if self._bar is None:
            from fsqueue.cli.bar import Bar

            self._bar = Bar(self._noun)
        self._flush()
        self._bar.show(self._doing, self.done, self.total)

    def _pace(self) -> str:
        """Say how fast it goes since it was first heard of: what came before was preparation."""
        began, before = self._first or (self._began, 0)
        passed = time.monotonic() - began
        if self.total is None or self.done <= before or not passed:
            return ""
        rate = (self.done - before) / passed
        return f", {rate:,.0f}/s, {age(max(0, self.total - self.done) / rate)} left"

    def _flush(self) -> None:
        lines, self._lines = self._lines, []
        if lines and self._bar is not None:
            self._bar.above("\n".join(lines))
        elif lines:
            data("\n".join(lines))


class Whole:
    """Let Ctrl-C wait for the end of a block, as of a line that is printed and counted; elsewhere it is as ever."""

    def __init__(self) -> None:
        self._inside = False
        self._due = False

    def __enter__(self) -> None:
        self._inside = True

    def __exit__(self, *_: object) -> None:
        self._inside = False
        if self._due:
            self._due = False
            raise KeyboardInterrupt

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Have SIGINT keep to it, where this is the thread that gets signals and nobody has another use for it."""
        if signal.getsignal(signal.SIGINT) is not signal.default_int_handler or not _is_main_thread():
            yield
            return
        signal.signal(signal.SIGINT, self._interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _interrupt(self, number: int, frame: object) -> None:
        if self._inside and not self._due:
            self._due = True
        else:
            raise KeyboardInterrupt


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def working(doing: str, noun: str, hushed: bool, ended: Callable[[Working], str] | None = None) -> Iterator[Working]:
    """Show a piece of work for the length of a block; Ctrl-C ends it with a line and 130.

    Args:
        noun: what is counted, in the singular.
        hushed: show nothing.
        ended: what to say of work that was interrupted; how much was done, unless given.
    """
    work = Working(doing, noun, hushed)
    try:
        yield work
    except KeyboardInterrupt:
        work.close()
        remark(f"interrupted: {ended(work) if ended else f'{work.text()} done; run it again for the others'}")
        raise click.exceptions.Exit(INTERRUPTED) from None
    finally:
        work.close()


def _is_one_terminal() -> bool:
    """Tell whether stdout is the very terminal that stderr is."""
    with suppress(OSError, ValueError):
        return sys.stdout.isatty() and os.path.samestat(os.fstat(sys.stdout.fileno()), os.fstat(sys.stderr.fileno()))
    return False
