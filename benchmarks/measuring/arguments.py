"""The arguments of the scripts that measure with `measure`, and what they ask for."""

from __future__ import annotations

import argparse
from typing import Any

from measuring.measure import Options
from measuring.session import counts, parser


def arguments_of(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser for a script whose docstring is given."""
    found = parser(doc)
    found.add_argument("--backlog", type=counts, help="refs pending meanwhile, such as 1000,20000")
    found.add_argument("--batch", type=counts, help="refs a call (default: 1,64)")
    found.add_argument("--procs", type=counts, help="processes at once (default: 1,4)")
    found.add_argument("--durable", action=argparse.BooleanOptionalAction, default=True, help="fsync what is put")
    found.add_argument("--rounds", type=int, help="interleaved rounds (default: 5)")
    found.add_argument("--slice", type=float, help="seconds a case and round (default: 0.12)")
    found.add_argument("--plots", help="write charts into this directory (needs matplotlib)")
    found.add_argument("--quick", action="store_true", help="a few seconds: to see that it runs, not to measure")
    return found


def describe(options: Options) -> str:
    durability = "on" if options.durable else "off"
    return f"durability {durability}, {options.rounds} interleaved rounds of {options.slice_s:g} s a case"


def options_of(parsed: argparse.Namespace, directory: str, backlogs: tuple[int, ...], **others: Any) -> Options:
    """Return the options that were asked for.

    Args:
        backlogs: where --backlog does not say.
        others: options that no argument sets.
    """
    quick = parsed.quick
    return Options(
        directory=directory,
        backlogs=parsed.backlog or backlogs,
        batches=parsed.batch or ((8,) if quick else (1, 64)),
        processes=parsed.procs or ((1, 2) if quick else (1, 4)),
        durable=parsed.durable,
        rounds=parsed.rounds or (1 if quick else 5),
        slice_s=parsed.slice or (0.02 if quick else 0.12),
        **others,
    )
