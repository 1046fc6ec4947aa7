"""`fsqueue requeue`: move refs back to pending, with no attempts counted."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from fsqueue import operate
from fsqueue.cli.arguments import (
    Condition,
    as_json,
    dry_run,
    duration,
    in_utf8,
    predicate_of,
    takes_queue_and_ids,
    where,
    words,
)
from fsqueue.cli.output import count, many_json, remark, shown
from fsqueue.cli.working import Whole, Working, quiet, working


@click.command(epilog="Example:  fsqueue requeue /shared/queue --failed")
@takes_queue_and_ids
@click.option("--failed", is_flag=True, help="All dead letters.")
@click.option(
    "--owner", type=words, help="The dead letters whose last event happened under this owner, or on this node."
)
@click.option(
    "--reason", type=words, help="The dead letters whose reason this matches, by *, ? and [...], upper case or lower."
)
@click.option("--older-than", type=duration, help="The dead letters that failed so long ago, such as 2h.")
@where
@dry_run
@quiet
@as_json
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
    quiet: bool,
    as_json: bool,
) -> None:
    """Move refs from failed, or else from done, to the tail of pending; their attempts count from 0 again.

    Prints the ids that were moved, as they are. QUEUE is the first argument, unless --queue or $FSQUEUE_DIR names it:
    then all arguments are ids. - reads ids from standard input, one a line. Exits with 1 where a ref could not be
    moved; the others are. Of --owner, --reason, --older-than and --where all that are given have to hold.
    """
    chosen = failed or bool(where) or any(given is not None for given in (owner, reason, older_than))
    if bool(ids) == chosen:
        raise click.UsageError("Give either ids, or --failed, --owner, --reason, --older-than or --where.")
    if ids == ("-",):
        ids = tuple(in_utf8(line).rstrip("\r\n") for line in sys.stdin.buffer if line.strip())
    with moving(ctx, "requeueing", "would requeue" if dry_run else "requeued", quiet, as_json) as moves:
        each, progress = moves.each, moves.work.progress
        if chosen:
            operate.requeue_failed(
                queue,
                owner=owner,
                reason=reason,
                older_than_s=older_than,
                where=predicate_of(where),
                dry_run=dry_run,
                each=each,
                progress=progress,
            )
        else:
            operate.requeue(queue, ids, dry_run=dry_run, each=each, progress=progress)


class Moves:
    """Print the ids that are moved to stdout at once, the others with the reason to stderr."""

    def __init__(self, work: Working, as_json: bool) -> None:
        self.work = work
        self.outcomes: list[operate.Outcome] = []
        self._as_json = as_json
        self._last: operate.Outcome | None = None
        self.whole = Whole()

    def each(self, outcome: operate.Outcome) -> None:
        """Print one, once; Ctrl-C waits for it."""
        if self._last is outcome:
            return
        with self.whole:
            self._print(outcome)
            self._last = outcome

    def _print(self, outcome: operate.Outcome) -> None:
        self.outcomes.append(outcome)
        if not outcome.moved:
            self.work.remark(f"not {shown(outcome.sample_id)}: {outcome.detail}")
        elif not self._as_json:
            self.work.data(shown(outcome.sample_id))

    @property
    def moved(self) -> int:
        return sum(outcome.moved for outcome in self.outcomes)


@contextmanager
def moving(ctx: click.Context, doing: str, done: str, quiet: bool, as_json: bool) -> Iterator[Moves]:
    """Show refs move for the length of a block; what was interrupted is told too, and 1 says that some stayed.

    Args:
        doing, done: what is done, for the bar and in the end.
    """

    def ended(work: Working) -> str:
        return f"{done} {moves.moved:,} of {count(work.total or moves.moved, 'ref')}; run it again for the others"

    moves: Moves
    try:
        with working(doing, "ref", quiet, ended) as work:
            moves = Moves(work, as_json)
            with moves.whole.heeded():
                yield moves
    finally:
        if as_json and (moves.outcomes or sys.exc_info()[0] is None):
            many_json(dataclasses.asdict(outcome) for outcome in moves.outcomes)
    if not quiet:
        remark(f"{done} {count(moves.moved, 'ref')}")
    if moves.moved < len(moves.outcomes):
        ctx.exit(1)
