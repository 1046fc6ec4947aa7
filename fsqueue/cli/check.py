"""`fsqueue check`: find damage, and repair it."""

from __future__ import annotations

import dataclasses

import click

from fsqueue.cli.arguments import as_json, dry_run, takes_queue, timeout, words
from fsqueue.cli.output import age, count, data, many_json, remark, shown
from fsqueue.cli.working import Working, quiet, working
from fsqueue.engine.settings import LOCK_MODES, SETTINGS
from fsqueue.operate.check import Mended, Violation, check_queue
from fsqueue.operate.check import repair as repair_queue
from fsqueue.operate.check.restore import restore


@click.command(epilog="Example:  fsqueue check /shared/queue --repair")
@takes_queue
@click.option("--repair", is_flag=True, help="Mend what can be mended; no ref is lost by it.")
@click.option(
    "--lease-timeout",
    type=timeout,
    metavar="TIME",
    help=f"With --repair: write a lost {SETTINGS} anew, with this, or never.",
)
@click.option("--lock", type=click.Choice(LOCK_MODES), help="With --lease-timeout: the queue's lock; default: flock.")
@click.option("--run-id", type=words, help="With --lease-timeout: the queue's run.")
@dry_run
@quiet
@as_json
@click.pass_context
def check(
    ctx: click.Context,
    queue: str,
    repair: bool,
    lease_timeout: float | None,
    lock: str | None,
    run_id: str | None,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Check every invariant of the format: one line for each violation, with what repair does about it.

    "damage" is what should never be; a "note" is what any crash may leave, and costs nothing. Safe on a running
    queue: whatever seems wrong is looked at twice. Exits with 1 where there is damage (left, after --repair).

    A queue that has lost its fsqueue.json, or in which that is damaged, gets a new one with --repair --lease-timeout:
    stop what uses it first. Nobody but you knows its timeout, its lock and its run.
    """
    restoring = ctx.get_parameter_source("lease_timeout") is not click.core.ParameterSource.DEFAULT
    if (restoring and not repair) or ((lock or run_id) and not restoring):
        raise click.UsageError(f"To write a lost {SETTINGS} anew takes --repair --lease-timeout TIME.")
    if restoring:
        settings = restore(queue, lease_timeout_s=lease_timeout, lock=lock or "flock", run_id=run_id, dry_run=dry_run)
        lasting = "leases never time out" if lease_timeout is None else f"lease timeout {age(lease_timeout)}"
        if not quiet:
            remark(f"{'would write' if dry_run else 'wrote'} {SETTINGS}: {lasting}, lock {settings.lock}")
        if dry_run:
            return
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
