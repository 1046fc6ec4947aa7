"""Print what commands say: data to stdout, everything else to stderr."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Sequence
from typing import Any

import click

_KINDS = (
    (stat.S_ISLNK, "a symlink"),
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_UNITS = (("d", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0))


def data(text: str = "") -> None:
    """Print a line of the command's result."""
    click.echo(text)


def remark(text: str) -> None:
    """Print a line for the person in front of it; where stderr is full or closed, the work goes on without it."""
    try:
        click.echo(text, err=True)
    except BrokenPipeError:
        raise
    except OSError:
        pass


def one_json(value: Any) -> None:
    """Print one JSON document."""
    data(json.dumps(value, ensure_ascii=False, indent=2))


def many_json(values: Iterable[Any]) -> None:
    """Print a JSON array, one element a line."""
    lines = [json.dumps(value, ensure_ascii=False) for value in values]
    data("[" + ("\n " if lines else "") + ",\n ".join(lines) + ("\n" if lines else "") + "]")


def require_replaceable(path: str, instead: str) -> None:
    """Refuse to write a file where something lies that is none: a rename would put the file in a device's place.

    Args:
        instead: how the command is told to print the text.

    Raises:
        ClickException: there is a device, a pipe, a socket, a directory or a symlink.
    """
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return  # nothing is there, or the writing says what is wrong
    if not stat.S_ISREG(mode):
        kind = next((kind for is_kind, kind in _KINDS if is_kind(mode)), "something else")
        raise click.ClickException(
            f"{path} is {kind}, and no regular file, which alone is replaced: name another; to have the "
            f"text on stdout, {instead}"
        )


def age(seconds: float | None) -> str:
    """Write a length of time in the largest unit that fits."""
    if seconds is None:
        return "-"
    unit, size = next((unit for unit in _UNITS if seconds >= unit[1]), _UNITS[-1])
    return f"{seconds / size:.1f} {unit}"


def shown(text: str) -> str:
    """Make text safe for a terminal: ids and reasons may hold line feeds and escape sequences."""
    if text and text.isprintable() and text == text.strip():
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print columns, left-aligned; the last one as long as it needs to be."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header) - 1)]
    for number, line in enumerate(lines):
        text = "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]])
        data(click.style(text.rstrip(), bold=True) if number == 0 else text.rstrip())


def count(number: int, noun: str) -> str:
    """Write ``1 ref``, ``2 refs``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
