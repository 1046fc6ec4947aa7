"""`fsqueue check`: find damage, and repair it."""

from __future__ import annotations

import dataclasses

import click

from fsqueue.cli.arguments import as_json, dry_run, takes_queue
from fsqueue.cli.output import count, data, many_json, remark, shown
from fsqueue.operate.check import Violation, check_queue
from fsqueue.operate.check import repair as repair_queue


@click.command(epilog="Example:  fsqueue check /shared/queue --repair")
@takes_queue
@click.option("--repair", is_flag=True, help="Mend what can be mended; no ref is lost by it.")
@dry_run
@as_json
@click.pass_context
def check(ctx: click.Context, queue: str, repair: bool, dry_run: bool, as_json: bool) -> None:
    """Check every invariant of the format: one line for each violation, with what repair does about it.

    "damage" is what should never be; a "note" is what any crash may leave, and costs nothing. Safe on a running
    queue: whatever seems wrong is looked at twice. Exits with 1 where there is damage (left, after --repair).
    """
    if repair and not dry_run:
        for mended in repair_queue(queue):
            remark(f"{shown(mended.violation.path)}: {mended.outcome}")
    found = check_queue(queue, notes=True)
    if as_json:
        many_json(dataclasses.asdict(violation) for violation in found)
    else:
        for violation in found:
            data(_line(violation))
    damaged = sum(violation.severity == "damage" for violation in found)
    notes = len(found) - damaged
    noted = f", {count(notes, 'note')}" if notes else ""
    remark(f"{queue}: {count(damaged, 'violation') if damaged else 'clean'}{noted}")
    ctx.exit(1 if damaged else 0)


def _line(violation: Violation) -> str:
    severity = click.style(violation.severity, fg="red" if violation.severity == "damage" else "yellow")
    return f"{severity}  {shown(violation.path)}: {violation.problem}; repair: {violation.remedy}"
