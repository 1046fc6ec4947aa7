"""`fsqueue pause`: keep a queue's refs where they are."""

from __future__ import annotations

import click

from fsqueue import operate
from fsqueue.cli.arguments import dry_run, takes_queue
from fsqueue.cli.output import remark, shown


@click.command(epilog="Example:  fsqueue pause /shared/queue --reason 'the store moves'")
@takes_queue
@click.option("--reason", help="For those who wait, and for `fsqueue status`.")
@dry_run
def pause(queue: str, reason: str | None, dry_run: bool) -> None:
    """Let nobody lease refs from a queue, until `fsqueue resume`.

    Heeded within a second. Puts, acknowledgements and renewals go on; gets, loops and trainers wait. A queue that is
    paused is not drained. The same is done by `touch QUEUE/paused.json`.
    """
    if dry_run:
        operate.status(queue)
        remark(f"would pause {queue}")
        return
    paused = operate.pause(queue, reason)
    remark(f"paused {queue}" + (f": {shown(paused.reason)}" if paused.reason else ""))
