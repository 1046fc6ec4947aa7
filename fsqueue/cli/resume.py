"""`fsqueue resume`: let a paused queue go on."""

from __future__ import annotations

import click

from fsqueue import operate
from fsqueue.cli.arguments import dry_run, takes_queue
from fsqueue.cli.output import remark


@click.command(epilog="Example:  fsqueue resume /shared/queue")
@takes_queue
@dry_run
def resume(queue: str, dry_run: bool) -> None:
    """Let a queue go on that `fsqueue pause` has paused: those who wait lease from it within a second."""
    was_paused = operate.status(queue).paused is not None if dry_run else operate.resume(queue) is not None
    if was_paused:
        remark(f"{'would resume' if dry_run else 'resumed'} {queue}")
    else:
        remark(f"{queue} is not paused")
