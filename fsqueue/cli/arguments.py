"""Parse what commands share: which queue is meant, durations, and the common flags.

One convention for QUEUE: it is the first argument. It may be left out where --queue or $FSQUEUE_DIR names it.
With --queue, no argument is taken for it. A command that takes any number of ids cannot tell a queue from an id:
there, with $FSQUEUE_DIR set, every argument is an id.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click
from click.shell_completion import CompletionItem

from fsqueue.engine.settings import SETTINGS

if TYPE_CHECKING:
    from fsqueue.operate import Predicate

F = TypeVar("F", bound=Callable[..., Any])

VARIABLE = "FSQUEUE_DIR"
_UNITS = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_duration = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([a-z]*)\Z").match


def duration(text: str) -> float:
    """Read a length of time such as 90, 90s, 10m, 1.5h, 2d or 1w, in seconds."""
    match = _duration(text)
    if match is None or match[2] not in _UNITS:
        raise click.BadParameter(f"{text!r} is no length of time: write 90s, 10m, 1.5h or 2d")
    return float(match[1]) * _UNITS[match[2]]


def timeout(text: str) -> float | None:
    """Read a length of time in seconds; None: never."""
    return None if text == "never" else duration(text)


def _condition(text: str) -> Condition:
    """Read KEY=VALUE or KEY!=VALUE; a dot in the key leads into an object."""
    text = as_typed(text)
    key, found, value = text.partition("=")
    if not found or not key.rstrip("!"):
        raise click.BadParameter(f"{text!r} is no condition: write KEY=VALUE or KEY!=VALUE, as in metadata.epoch=3")
    return Condition(key.rstrip("!").split("."), value, not key.endswith("!"))


class Condition(NamedTuple):
    """Compare a field of a ref with a word: as text, or as JSON where it is no string."""

    keys: list[str]
    value: str
    equal: bool

    def __str__(self) -> str:
        return f"{'.'.join(self.keys)}{'=' if self.equal else '!='}{self.value}"

    def holds(self, ref: dict[str, Any] | None) -> bool:
        """Tell whether it holds; a field that is not there equals nothing."""
        found: Any = ref
        for key in self.keys:
            if not isinstance(found, dict) or key not in found:
                return not self.equal and ref is not None
            found = found[key]
        text = found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
        return (text == self.value) is self.equal


def predicate_of(conditions: tuple[Condition, ...]) -> Predicate | None:
    """Return what chooses the refs for which all conditions hold; None where there are none."""
    if not conditions:
        return None
    return lambda detail: all(condition.holds(detail.ref) for condition in conditions)


where = click.option(
    "--where",
    type=_condition,
    multiple=True,
    metavar="KEY=VALUE",
    help="Those with this field, or with KEY!=VALUE another one; may be given several times.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
dry_run = click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")


def as_typed(word: str) -> str:
    """Return an id as it was typed, in UTF-8, under whatever locale: a batch job's may know ASCII alone."""
    return in_utf8(os.fsencode(word))


class _Words(click.types.StringParamType):
    """Take text as it was typed, in UTF-8, under whatever locale; bytes that are none come escaped, as in `fail`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return in_utf8(os.fsencode(super().convert(value, param, ctx)))


def in_utf8(data: bytes) -> str:
    """Read UTF-8; a byte that is none becomes ``\\xff``."""
    return data.decode("utf-8", "backslashreplace")


words = _Words()


class _QueuePath(click.types.StringParamType):
    """Take a word, and complete it as a directory's path."""

    name = "queue"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="dir")]


def _taking(metavar: str, nargs: int, parse: Callable[[Any, str | None], dict[str, Any]]) -> Callable[[F], F]:
    """Give a command what parse makes of its words and of --queue."""

    def decorate(command: F) -> F:
        @click.argument("words", metavar=metavar, nargs=nargs, required=False, type=_QueuePath())
        @click.option(
            "-q", "--queue", "option", metavar="QUEUE", type=_QueuePath(), help="The queue, in place of the argument."
        )
        @functools.wraps(command)
        def wrapper(*args: Any, words: Any, option: str | None, **kwargs: Any) -> Any:
            parsed = parse(words, option)
            parsed["queue"] = os.path.expanduser(parsed["queue"])  # no shell does so after --queue=
            return command(*args, **parsed, **kwargs)

        return wrapper  # type: ignore[return-value]

    return decorate


def takes_queue(command: F) -> F:
    """Take ``[QUEUE]``: the command gets ``queue``."""

    def parse(argument: str | None, option: str | None) -> dict[str, Any]:
        if argument is not None and option is not None:
            raise click.UsageError(f"QUEUE is given twice: as the argument {argument!r} and as --queue {option!r}.")
        return {"queue": argument or option or _from_environment()}

    return _taking("[QUEUE]", 1, parse)(command)


def takes_queue_and_one(what: str) -> Callable[[F], F]:
    """Take ``[QUEUE] WHAT``: the command gets ``queue`` and, by its name in lower case, the other."""

    def parse(words: tuple[str, ...], option: str | None) -> dict[str, Any]:
        expected = (what,) if option is not None else ("QUEUE", what)
        if not words:
            raise click.UsageError(f"Missing argument {what}.")
        if len(words) > len(expected):
            raise click.UsageError(f"Expected {' '.join(expected)}, found {len(words)} arguments: {' '.join(words)}.")
        queue = words[0] if len(words) == 2 else option or _from_environment(words[0], what)
        return {"queue": queue, what.lower(): as_typed(words[-1])}

    return _taking(f"[QUEUE] {what}", -1, parse)


def takes_queue_and_ids(command: F) -> F:
    """Take ``[QUEUE] [ID]...``: the command gets ``queue`` and ``ids``."""

    def parse(words: tuple[str, ...], option: str | None) -> dict[str, Any]:
        if option is None and os.environ.get(VARIABLE):
            _refuse_queue_first(words)
            option = os.environ[VARIABLE]
        elif option is None:
            option, words = (words[0], words[1:]) if words else (_from_environment(), ())
        return {"queue": option, "ids": tuple(map(as_typed, words))}

    return _taking("[QUEUE] [ID]...", -1, parse)(command)


def _from_environment(only_word: str | None = None, what: str | None = None) -> str:
    found = os.environ.get(VARIABLE)
    if found:
        return found
    heard = f" {only_word!r} is taken for {what}." if only_word is not None else ""
    raise click.UsageError(
        f"Missing argument QUEUE.{heard} Name the queue as the first argument, with --queue, or in ${VARIABLE}."
    )


def _refuse_queue_first(ids: tuple[str, ...]) -> None:
    if ids and os.path.exists(os.path.join(ids[0], SETTINGS)):
        raise click.UsageError(
            f"{ids[0]!r} is a queue, but with ${VARIABLE} set all arguments are ids: name a queue with --queue."
        )
