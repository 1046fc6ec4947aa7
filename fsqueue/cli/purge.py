"""`fsqueue purge`: remove old files from done or failed."""

from __future__ import annotations

import sys
import time

import click

from fsqueue import operate
from fsqueue.cli.arguments import as_json, dry_run, duration, takes_queue
from fsqueue.cli.output import age, count, one_json, remark
from fsqueue.cli.working import Working, quiet, working
from fsqueue.format.packed import refs_in


@click.command(epilog="Example:  fsqueue purge /shared/queue --state done --older-than 2d")
@takes_queue
@click.option("--state", type=click.Choice(("done", "failed")), required=True, help="Where to remove files.")
@click.option("--older-than", type=duration, required=True, help="Age, such as 2d or 12h; 0 removes all.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@dry_run
@quiet
@as_json
def purge(queue: str, state: str, older_than: float, yes: bool, dry_run: bool, quiet: bool, as_json: bool) -> None:
    """Remove the files of refs that were done or failed long ago; prints their names, as they go.

    The age counts from a file's last stamp: when the ref was leased or renewed last, or failed. On a terminal, it says
    first what it will remove, and asks.
    """
    if not (yes or dry_run) and sys.stdin.isatty() and sys.stderr.isatty():
        older_than += _asked(queue, state, older_than)
    removed: list[str] = []

    try:
        with working("removing", "file", quiet, _ended) as work:

            def each(name: str) -> None:
                removed.append(name)
                if not as_json:
                    work.data(f"{state}/{name}")

            operate.purge(queue, state, older_than, dry_run=dry_run, each=each, progress=work.progress)
    finally:
        if as_json and (removed or sys.exc_info()[0] is None):
            one_json({"state": state, "refs": refs_in(removed), "removed": removed, "dry_run": dry_run})
    if not quiet:
        remark(f"{'would remove' if dry_run else 'removed'} {_what(removed)}")


def _ended(work: Working) -> str:
    return f"{work.text()} removed; run it again for the others"


def _asked(queue: str, state: str, older_than: float) -> float:
    """Say what would go, and ask; return how long that took, since nothing younger was meant to go.

    Raises:
        ClickException: the answer is no.
    """
    began = time.monotonic()
    found = operate.purge(queue, state, older_than, dry_run=True).files
    if not found:
        return 0.0
    what = f"{_what(found)} in {queue}/{state}"
    older = f", last stamped {age(older_than)} ago or earlier" if older_than else ""
    if not click.confirm(f"This removes {what}{older}, for good. Go on?", err=True):
        raise click.ClickException("removed nothing, as told")
    return time.monotonic() - began


def _what(names: list[str]) -> str:
    refs, files = refs_in(names), len(names)
    return count(files, "file") if refs == files else f"{count(refs, 'ref')} in {count(files, 'file')}"
