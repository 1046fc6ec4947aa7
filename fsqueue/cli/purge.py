"""`fsqueue purge`: remove old files from done or failed."""

from __future__ import annotations

import click

from fsqueue.cli.arguments import dry_run, duration, takes_queue
from fsqueue.cli.output import count, data, remark
from fsqueue.operate import operator


@click.command(epilog="Example:  fsqueue purge /shared/queue --state done --older-than 2d")
@takes_queue
@click.option("--state", type=click.Choice(("done", "failed")), required=True, help="Where to remove files.")
@click.option("--older-than", type=duration, required=True, help="Age, such as 2d or 12h; 0 removes all.")
@dry_run
def purge(queue: str, state: str, older_than: float, dry_run: bool) -> None:
    """Remove the files of refs that were done or failed long ago; prints their names.

    The age counts from a file's last stamp: when the ref was leased or renewed last, or failed.
    """
    removed = operator.purge(queue, state, older_than, dry_run=dry_run)
    for name in removed:
        data(f"{state}/{name}")
    remark(f"{'would remove' if dry_run else 'removed'} {count(len(removed), 'file')}")
