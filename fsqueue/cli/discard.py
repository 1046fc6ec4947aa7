"""`fsqueue discard`: move stale pending refs to failed."""

from __future__ import annotations

import click

from fsqueue import operate
from fsqueue.cli.arguments import Condition, as_json, dry_run, duration, predicate_of, takes_queue, where, words
from fsqueue.cli.requeue import moving
from fsqueue.cli.working import quiet


@click.command(epilog="Example:  fsqueue discard /shared/queue --older-than 2h --where draft_weight_version=v6")
@takes_queue
@click.option("--older-than", type=duration, help="Those that were put, or leased last, so long ago: 2h; 0: all.")
@where
@click.option("--reason", type=words, help="Stands in the files; unless given, what they were chosen by.")
@dry_run
@quiet
@as_json
@click.pass_context
def discard(
    ctx: click.Context,
    queue: str,
    older_than: float | None,
    where: tuple[Condition, ...],
    reason: str | None,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Move refs from pending to failed that are too old to be worked on, or were made by an older model.

    All that is given has to hold. What is leased stays with its holder. Prints the ids that were moved, as they
    are; `fsqueue requeue` brings them back.
    """
    if older_than is None and not where:
        raise click.UsageError("Say which: give --older-than or --where; --older-than 0 discards all that is pending.")
    chosen = [*([] if older_than is None else [f"older than {older_than:g} s"]), *map(str, where)]
    with moving(ctx, "discarding", "would discard" if dry_run else "discarded", quiet, as_json) as moves:
        operate.discard(
            queue,
            f"discarded: {reason or ', '.join(chosen)}",
            older_than_s=older_than,
            where=predicate_of(where),
            dry_run=dry_run,
            each=moves.each,
            progress=moves.work.progress,
        )
