"""`fsqueue init`: create a queue."""

from __future__ import annotations

import os
from contextlib import closing

import click

from fsqueue.cli.arguments import as_json, dry_run, duration, takes_queue, words
from fsqueue.cli.output import one_json, remark
from fsqueue.disk.directory import Directory
from fsqueue.disk.fileops import current
from fsqueue.disk.publish import absolute
from fsqueue.engine.layout import ensure_queue, refuse_strangers
from fsqueue.engine.settings import LOCK_MODES, SETTINGS
from fsqueue.errors import NotAQueueError
from fsqueue.queue import FileSampleRefQueue


@click.command(epilog="Example:  fsqueue init /shared/queue --lease-timeout 10m")
@takes_queue
@click.option(
    "--lease-timeout", type=duration, help="How long an unrenewed lease lasts, such as 10m; default: for ever."
)
@click.option("--lock", type=click.Choice(LOCK_MODES), help="What orders put and get; default: flock.")
@click.option("--run-id", type=words, help="Handles that name another run are refused.")
@dry_run
@as_json
def init(
    queue: str, lease_timeout: float | None, lock: str | None, run_id: str | None, dry_run: bool, as_json: bool
) -> None:
    """Create a queue in QUEUE, a directory that is missing or empty.

    For a queue that exists, check that these are its settings.
    """
    path = absolute(queue)
    existed = os.path.exists(os.path.join(queue, SETTINGS))
    if dry_run and not existed:
        _refuse_other_contents(queue)
        if as_json:
            _print(queue, False, True, lease_timeout, lock or "flock", run_id)
        remark(f"would create a queue in {queue}")
        return
    ops = current()
    found = ensure_queue(ops, path, lease_timeout_s=lease_timeout, lock=lock, run_id=run_id, now=ops.time)
    if not dry_run:
        FileSampleRefQueue(queue).close()  # finds out whether the mount has the lock
    if as_json:
        _print(queue, existed, dry_run, found.lease_timeout_s, found.lock, found.run_id)
    remark(f"{queue} is a queue already" if existed else f"created a queue in {queue}")


def _print(
    queue: str, existed: bool, dry_run: bool, lease_timeout_s: float | None, lock: str, run_id: str | None
) -> None:
    settings = {"lease_timeout_s": lease_timeout_s, "lock": lock, "run_id": run_id}
    one_json({"queue": queue, "existed": existed, **settings, "dry_run": dry_run})


def _refuse_other_contents(queue: str) -> None:
    if os.path.exists(queue) and not os.path.isdir(queue):
        raise NotAQueueError(queue, "is a file: a queue is a directory")
    if os.path.isdir(queue):
        with closing(Directory(current(), queue)) as root:
            refuse_strangers(root)
