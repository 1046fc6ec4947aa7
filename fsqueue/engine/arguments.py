"""Check the arguments of a queue's calls, so that a slip is told in the caller's words."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator
from numbers import Real
from typing import Any, TypeVar

from fsqueue.errors import InvalidArgumentError

R = TypeVar("R")


def integer(call: str, value: Any, advice: str = "") -> int:
    """Return a count as an int; True and False are none."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise InvalidArgumentError(call, "an integer", value, advice) from None


def flag(call: str, value: Any) -> bool:
    """Return a flag as a bool; refuse what is neither: of the words that are given instead, "no" would be True."""
    if type(value).__name__ not in ("bool", "bool_") and not (isinstance(value, int) and value in (0, 1)):
        raise InvalidArgumentError(call, "True or False", value)
    return bool(value)


def text(call: str, value: Any, advice: str = "") -> None:
    """Refuse what is no string, and one that has no bytes in UTF-8."""
    try:
        if isinstance(value, str):
            value.encode()
            return
    except UnicodeEncodeError:
        advice = ": half a surrogate pair, or a byte that is no UTF-8, is in it"
    raise InvalidArgumentError(call, "a string", value, advice)


def call_or_none(call: str, value: Any) -> None:
    """Refuse what is neither a function nor None."""
    if value is not None and not callable(value):
        raise InvalidArgumentError(call, "a function or None", value)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def seconds(call: str, value: Any) -> None:
    """Refuse what is neither a number of seconds nor None."""
    if value is not None and not _is_number(value):
        raise InvalidArgumentError(call, "a number of seconds or None", value)


def stored_seconds(call: str, value: Any) -> float | None:
    """Return seconds as a number that JSON has: an int or a float, whatever class of numbers it comes from."""
    seconds(call, value)
    if value is None or type(value) in (int, float):
        return value  # type: ignore[no-any-return]
    return float(value)


def wait(call: str, value: Any, longest_s: float) -> None:
    """Refuse what is no length of time to wait, from 0 to so many seconds."""
    if not _is_number(value) or not 0 <= float(value) <= longest_s:
        raise InvalidArgumentError(call, f"seconds from 0 to {longest_s:g}", value)


def age(call: str, value: Any) -> None:
    """Refuse what is no number of seconds; a negative one means a time to come."""
    seconds(call, value)
    if value is None or math.isnan(value):
        raise InvalidArgumentError(call, "a number of seconds", value)


def elapsed(call: str, value: Any) -> None:
    """Refuse what is no length of time that has passed."""
    if not _is_number(value) or not float(value) >= 0:
        raise InvalidArgumentError(call, "seconds, 0 or more", value)


def elapsed_or_none(call: str, value: Any) -> None:
    """Refuse what is neither a length of time that has passed nor None."""
    if value is not None:
        elapsed(call, value)


def text_or_none(call: str, value: Any) -> None:
    """Refuse what is neither a string nor None."""
    if value is not None:
        text(call, value)


def patience(call: str, value: Any) -> None:
    """Refuse what is no time to wait."""
    seconds(call, value)
    if value is not None and math.isnan(value):
        raise InvalidArgumentError(call, "a number of seconds or None", value)


def partition(call: str, value: Any) -> None:
    """Refuse what is no pair of integers."""
    try:
        index, count = map(operator.index, value)
    except (TypeError, ValueError):
        raise InvalidArgumentError(f"{call}(partition=)", "(index, count), two integers", value) from None
    if not 0 <= index < count:
        raise InvalidArgumentError(f"{call}(partition=)", "(index, count) with 0 <= index < count", value)


def batch(call: str, refs: Iterable[R]) -> Iterable[R]:
    """Refuse what is no iterable of refs: one ref alone, a string, a dict."""
    if type(refs) is list:
        return refs
    advice = f": write {call}([ref])" if hasattr(refs, "sample_id") else ""
    try:
        if not (advice or isinstance(refs, (str, bytes, dict))):
            iter(refs)
            return refs
    except TypeError:
        pass
    raise InvalidArgumentError(call, "an iterable of refs", refs, advice)


def with_ids(call: str, refs: Iterable[R]) -> Iterator[tuple[R, str]]:
    """Yield refs that get returned, or others that have the same ids, each with its id."""
    for ref in batch(call, refs):
        sample_id = getattr(ref, "sample_id", None)
        if not isinstance(sample_id, str):
            advice = (
                ": settle what get returned; for an id alone, make a ref that has it" if isinstance(ref, str) else ""
            )
            raise InvalidArgumentError(call, "refs, with a sample_id each", ref, advice)
        yield ref, sample_id


def ids(call: str, refs: Iterable[object]) -> Iterator[str]:
    """Yield the ids of such refs."""
    return (sample_id for _, sample_id in with_ids(call, refs))


def sample_ids(call: str, found: Iterable[str]) -> list[str]:
    """Return ids as a list; refuse one id alone, which would be read letter by letter, and what is no id."""
    if isinstance(found, (str, bytes)):
        raise InvalidArgumentError(call, "an iterable of sample ids", found, f": write {call}([sample_id])")
    try:
        ids = list(found)
    except TypeError:
        raise InvalidArgumentError(call, "an iterable of sample ids", found) from None
    for each in ids:
        if not isinstance(each, str):
            advice = ": give its sample_id" if hasattr(each, "sample_id") else ""
            raise InvalidArgumentError(call, "sample ids, which are strings", each, advice)
    return ids


def at_least(call: str, value: Any, least: int) -> int:
    """Return a count as an int; refuse one that is too small to be meant."""
    number = integer(call, value)
    if number < least:
        raise InvalidArgumentError(call, f"an integer of {least} or more", value)
    return number


def count(call: str, value: Any, advice: str = "") -> int:
    """Return a count of 0 or more as an int; refuse True and False, too, which JSON tells from numbers."""
    number = -1 if isinstance(value, bool) else integer(call, value, advice)
    if number < 0:
        raise InvalidArgumentError(call, "an integer of 0 or more", value, advice)
    return number


def attempt(call: str, value: Any) -> int | None:
    """Return how often a launcher has started a process again; None where it does not say."""
    advice = ": write int(...)" if isinstance(value, str) else ""
    return None if value is None else count(f"{call}(attempt=)", value, advice)


def with_call(call: str, expected: str, value: Any, *names: str) -> None:
    """Refuse an object without these methods: a path, for instance, where what lies there is wanted."""
    if not all(callable(getattr(value, name, None)) for name in names):
        raise InvalidArgumentError(call, expected, value)
