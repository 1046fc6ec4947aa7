"""`fsqueue resume`: let a paused queue go on."""

from __future__ import annotations

import dataclasses

import click

from fsqueue import operate
from fsqueue.cli.arguments import as_json, dry_run, takes_queue
from fsqueue.cli.output import one_json, remark


@click.command(epilog="Example:  fsqueue resume /shared/queue")
@takes_queue
@dry_run
@as_json
def resume(queue: str, dry_run: bool, as_json: bool) -> None:
    """Let a queue go on that `fsqueue pause` has paused: those who wait lease from it within a second."""
    paused = operate.status(queue).paused if dry_run else operate.resume(queue)
    if as_json:
        one_json({"queue": queue, "paused": paused and dataclasses.asdict(paused), "dry_run": dry_run})
    if paused is not None:
        remark(f"{'would resume' if dry_run else 'resumed'} {queue}")
    else:
        remark(f"{queue} is not paused")
