"""`fsqueue purge`: remove old files from done or failed."""

from __future__ import annotations

import click

from fsqueue import operate
from fsqueue.cli.arguments import dry_run, duration, takes_queue
from fsqueue.cli.output import count, data, remark


@click.command(epilog="Example:  fsqueue purge /shared/queue --state done --older-than 2d")
@takes_queue
@click.option("--state", type=click.Choice(("done", "failed")), required=True, help="Where to remove files.")
@click.option("--older-than", type=duration, required=True, help="Age, such as 2d or 12h; 0 removes all.")
@dry_run
def purge(queue: str, state: str, older_than: float, dry_run: bool) -> None:
    """Remove the files of refs that were done or failed long ago; prints their names.

    The age counts from a file's last stamp: when the ref was leased or renewed last, or failed.
    """
    removed = operate.purge(queue, state, older_than, dry_run=dry_run)
    for name in removed.files:
        data(f"{state}/{name}")
    held = "" if removed.refs == len(removed.files) else f" with {count(removed.refs, 'ref')}"
    remark(f"{'would remove' if dry_run else 'removed'} {count(len(removed.files), 'file')}{held}")
