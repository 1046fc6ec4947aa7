"""`fsqueue pack`: move old done files into segments."""

from __future__ import annotations

import dataclasses

import click

from fsqueue import operate
from fsqueue.cli.arguments import as_json, dry_run, duration, takes_queue
from fsqueue.cli.output import count, one_json, remark
from fsqueue.cli.working import quiet, working


@click.command(epilog="Example:  fsqueue pack /shared/queue --older-than 1h")
@takes_queue
@click.option("--older-than", type=duration, default="1h", show_default=True, help="Age, such as 2d or 12h; 0: all.")
@dry_run
@quiet
@as_json
def pack(queue: str, older_than: float, dry_run: bool, quiet: bool, as_json: bool) -> None:
    """Move the files of refs that were done long ago into segments of up to 10,000 refs, one file each.

    What is packed is done all the same: `ls`, `show`, `status` and `requeue` find it, a rewind brings it back, and
    `purge` removes it. Safe while the queue is in use, and safe to kill. The age counts as for `purge`.
    """
    with working("packing", "ref", quiet, lambda work: f"{work.text()} packed; run it again for the others") as work:
        packed = operate.pack(queue, older_than, dry_run=dry_run, progress=work.progress)
    if as_json:
        one_json(dataclasses.asdict(packed))
    if not quiet:
        verb = "would pack" if dry_run else "packed"
        remark(f"{verb} {count(packed.refs, 'ref')} into {count(packed.segments, 'segment')}")
