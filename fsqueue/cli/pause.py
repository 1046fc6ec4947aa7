"""`fsqueue pause`: keep a queue's refs where they are."""

from __future__ import annotations

import dataclasses

import click

from fsqueue import operate
from fsqueue.cli.arguments import as_json, dry_run, takes_queue, words
from fsqueue.cli.output import one_json, remark, shown


@click.command(epilog="Example:  fsqueue pause /shared/queue --reason 'the store moves'")
@takes_queue
@click.option("--reason", type=words, help="For those who wait, and for `fsqueue status`.")
@dry_run
@as_json
def pause(queue: str, reason: str | None, dry_run: bool, as_json: bool) -> None:
    """Let nobody lease refs from a queue, until `fsqueue resume`.

    Heeded within a second. Puts, acknowledgements and renewals go on; gets, loops and trainers wait. A queue that is
    paused is not drained. The same is done by `touch QUEUE/paused.json`.
    """
    paused = operate.status(queue).paused if dry_run else operate.pause(queue, reason)
    if as_json:
        one_json({"queue": queue, "paused": paused and dataclasses.asdict(paused), "dry_run": dry_run})
    if dry_run:
        remark(f"would pause {queue}")
    elif paused is not None:
        remark(f"paused {queue}" + (f": {shown(paused.reason)}" if paused.reason else ""))
