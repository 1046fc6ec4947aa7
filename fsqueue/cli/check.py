"""`fsqueue check`: find damage, and repair it."""

from __future__ import annotations

import dataclasses

import click

from fsqueue.cli.arguments import as_json, dry_run, takes_queue
from fsqueue.cli.output import count, data, many_json, remark, shown
from fsqueue.cli.working import Working, quiet, working
from fsqueue.operate.check import Mended, Violation, check_queue
from fsqueue.operate.check import repair as repair_queue


@click.command(epilog="Example:  fsqueue check /shared/queue --repair")
@takes_queue
@click.option("--repair", is_flag=True, help="Mend what can be mended; no ref is lost by it.")
@dry_run
@quiet
@as_json
@click.pass_context
def check(ctx: click.Context, queue: str, repair: bool, dry_run: bool, quiet: bool, as_json: bool) -> None:
    """Check every invariant of the format: one line for each violation, with what repair does about it.

    "damage" is what should never be; a "note" is what any crash may leave, and costs nothing. Safe on a running
    queue: whatever seems wrong is looked at twice. Exits with 1 where there is damage (left, after --repair).
    """
    if repair and not dry_run:
        _repair(queue, quiet)
    with working("checking", "file", quiet, _ended) as work:
        found = check_queue(queue, notes=True, progress=work.progress)
    if as_json:
        many_json(dataclasses.asdict(violation) for violation in found)
    else:
        for violation in found:
            data(_line(violation))
    damaged = sum(violation.severity == "damage" for violation in found)
    notes = len(found) - damaged
    noted = f", {count(notes, 'note')}" if notes else ""
    if damaged or not quiet:
        remark(f"{queue}: {count(damaged, 'violation') if damaged else 'clean'}{noted}")
    ctx.exit(1 if damaged else 0)


def _repair(queue: str, quiet: bool) -> None:
    mended: list[Mended] = []

    def ended(work: Working) -> str:
        return f"{count(len(mended), 'violation')} looked into; run it again for the others"

    with working("repairing", "step", quiet, ended) as work:

        def each(one: Mended) -> None:
            mended.append(one)
            if not (quiet and one.done):
                work.remark(f"{shown(one.violation.path)}: {one.outcome}")

        repair_queue(queue, each=each, progress=work.progress)


def _ended(work: Working) -> str:
    return f"{work.text()} checked; what was wrong with them is not known before all were"


def _line(violation: Violation) -> str:
    severity = click.style(violation.severity, fg="red" if violation.severity == "damage" else "yellow")
    return f"{severity}  {shown(violation.path)}: {violation.problem}; repair: {violation.remedy}"
