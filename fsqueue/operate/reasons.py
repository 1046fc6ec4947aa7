"""Tell dead letters of one kind from those of others by their reasons, whose numbers differ from ref to ref."""

from __future__ import annotations

import re

_LIMIT = 80
_numbers = re.compile(r"\d+").sub


def kind_of_reason(reason: str) -> str:
    """Return a reason's first line without its numbers, which would make each a kind of its own."""
    first = reason.partition("\n")[0].strip()
    return _numbers("#", first)[:_LIMIT] or "(none given)"
