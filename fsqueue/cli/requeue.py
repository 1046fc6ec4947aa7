"""`fsqueue requeue`: move refs back to pending, with no attempts counted."""

from __future__ import annotations

import sys

import click

from fsqueue import operate
from fsqueue.cli.arguments import Condition, dry_run, duration, predicate_of, takes_queue_and_ids, where
from fsqueue.cli.output import count, data, remark, shown


@click.command(epilog="Example:  fsqueue requeue /shared/queue --failed")
@takes_queue_and_ids
@click.option("--failed", is_flag=True, help="All dead letters.")
@click.option("--owner", help="The dead letters whose last event happened under this owner, or on this node.")
@click.option("--reason", help="The dead letters whose reason this matches, by *, ? and [...], upper case or lower.")
@click.option("--older-than", type=duration, help="The dead letters that failed so long ago, such as 2h.")
@where
@dry_run
@click.pass_context
def requeue(
    ctx: click.Context,
    queue: str,
    ids: tuple[str, ...],
    failed: bool,
    owner: str | None,
    reason: str | None,
    older_than: float | None,
    where: tuple[Condition, ...],
    dry_run: bool,
) -> None:
    """Move refs from failed, or else from done, to the tail of pending; their attempts count from 0 again.

    Prints the ids that were moved. QUEUE is the first argument, unless --queue or $FSQUEUE_DIR names it: then all
    arguments are ids. - reads ids from standard input, one a line. Exits with 1 where a ref could not be moved; the
    others are. Of --owner, --reason, --older-than and --where all that are given
    have to hold.
    """
    chosen = failed or bool(where) or any(given is not None for given in (owner, reason, older_than))
    if bool(ids) == chosen:
        raise click.UsageError("Give either ids, or --failed, --owner, --reason, --older-than or --where.")
    if ids == ("-",):
        ids = tuple(line.decode().rstrip("\r\n") for line in sys.stdin.buffer if line.strip())
    if not chosen:
        outcomes = operate.requeue(queue, ids, dry_run=dry_run)
    else:
        outcomes = operate.requeue_failed(
            queue,
            owner=owner,
            reason=reason,
            older_than_s=older_than,
            where=predicate_of(where),
            dry_run=dry_run,
        )
    print_outcomes(ctx, outcomes, "would requeue" if dry_run else "requeued")


def print_outcomes(ctx: click.Context, outcomes: list[operate.Outcome], verb: str) -> None:
    """Print the ids that were moved to stdout, the others with the reason to stderr; exit with 1 if there are any."""
    moved = [outcome for outcome in outcomes if outcome.moved]
    for outcome in moved:
        data(shown(outcome.sample_id))
    for outcome in outcomes:
        if not outcome.moved:
            remark(f"not {shown(outcome.sample_id)}: {outcome.detail}")
    remark(f"{verb} {count(len(moved), 'ref')}")
    if len(moved) < len(outcomes):
        ctx.exit(1)
