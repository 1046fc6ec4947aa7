"""Write the manual page fsqueue(1) from the commands themselves: the same text as `--help`.

    python -m fsqueue.cli.manual > fsqueue/cli/fsqueue.1

The wheel puts it under share/man/man1, where `man fsqueue` finds it. A test holds it to the commands.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import click

from fsqueue import __version__
from fsqueue.cli.main import COMMANDS, cli

_ENVIRONMENT = {
    "FSQUEUE_DIR": "The queue, where neither an argument nor --queue names one.",
    "FSQUEUE_API_KEY": "What `fsqueue capture` sends to a server that wants a key.",
    "NO_COLOR": "Where it is set, nothing is printed in colour.",
}
_code = re.compile(r"`([^`]+)`").sub


def manual() -> str:
    """Return the page as roff."""
    ctx = click.Context(cli, info_name="fsqueue")
    lines = [f'.TH FSQUEUE 1 "" "fsqueue {__version__}" "User Commands"', ".SH NAME"]
    description, *others = _paragraphs(cli.help or "")
    lines.append(f"fsqueue \\- {_roff(_first_word_small(' '.join(description).rstrip('.')))}")
    lines += [".SH SYNOPSIS", ".B fsqueue", "\\fICOMMAND\\fP [\\fIOPTION\\fP]... [\\fIQUEUE\\fP] [\\fIARGUMENT\\fP]..."]
    lines += [".SH DESCRIPTION", *_text(others), ".SH COMMANDS"]
    for name in COMMANDS:
        command = cli.get_command(ctx, name)
        assert command is not None
        lines += _command(click.Context(command, info_name=f"fsqueue {name}", parent=None), command)
    lines.append(".SH ENVIRONMENT")
    for name, what in _ENVIRONMENT.items():
        lines += [".TP", f".B {name}", _roff(what)]
    return "\n".join(lines) + "\n"


def _command(ctx: click.Context, command: click.Command) -> Iterator[str]:
    words = " ".join(command.collect_usage_pieces(ctx))
    yield f'.SS "{_roff(ctx.info_name or "")} {_roff(words)}"'
    yield from _text(_paragraphs(command.help or ""))
    for option in command.get_params(ctx):
        record = option.get_help_record(ctx) if isinstance(option, click.Option) else None
        if record is not None and "--help" not in option.opts:
            yield from (".TP", f".B {_roff(record[0])}", _roff(record[1]) or "\\&")
    if command.epilog:
        yield from (".PP", "Example:", ".PP", ".nf", ".RS", _roff(command.epilog.removeprefix("Example:").strip()))
        yield from (".RE", ".fi")


def _paragraphs(text: str) -> list[list[str]]:
    """Return the lines of each paragraph."""
    return [part.split("\n") for part in inspect.cleandoc(text).strip().split("\n\n")]


def _text(paragraphs: list[list[str]]) -> Iterator[str]:
    """Write paragraphs; one that begins with click's mark keeps its lines."""
    for lines in paragraphs:
        yield ".PP"
        if lines[0].strip() == "\b":
            yield from (".nf", *map(_roff, lines[1:]), ".fi")
        else:
            yield _roff(" ".join(lines))


def _first_word_small(text: str) -> str:
    return text[:1].lower() + text[1:]


def _roff(text: str) -> str:
    """Write plain text as roff: nothing in it is a command; what stands between backticks is bold."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq").replace("'", "\\(aq")
    text = _code(r"\\fB\1\\fP", text)
    return f"\\&{text}" if text.startswith(".") else text


if __name__ == "__main__":
    print(manual(), end="")
