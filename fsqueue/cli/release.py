"""`fsqueue release`: take back what a dead node leases, now."""

from __future__ import annotations

import click

from fsqueue import operate
from fsqueue.cli.arguments import as_json, dry_run, takes_queue, words
from fsqueue.cli.requeue import moving
from fsqueue.cli.working import quiet


@click.command(epilog="Example:  fsqueue release /shared/queue --owner node12")
@takes_queue
@click.option(
    "--owner", type=words, required=True, help="An owner as `fsqueue status` names it, or a node: all that run on it."
)
@click.option("--force", is_flag=True, help="Also from a process that runs on this host.")
@dry_run
@quiet
@as_json
@click.pass_context
def release(ctx: click.Context, queue: str, owner: str, force: bool, dry_run: bool, quiet: bool, as_json: bool) -> None:
    """Move an owner's leases to the tail of pending without waiting for them to expire.

    No attempt is counted. An owner that still works finds its leases lost when it acks. Refused where the owner's
    process is known to run on this host. Prints the ids that were moved, as they are.
    """
    with moving(ctx, "releasing", "would release" if dry_run else "released", quiet, as_json) as moves:
        operate.release(queue, owner, force=force, dry_run=dry_run, each=moves.each, progress=moves.work.progress)
