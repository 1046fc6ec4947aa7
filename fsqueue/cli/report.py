"""`fsqueue report`: tell how a run went, on one page that one can send."""

from __future__ import annotations

import dataclasses
import os
import secrets
from contextlib import suppress

import click

from fsqueue.cli.arguments import as_json, takes_queue
from fsqueue.cli.output import one_json, remark, require_replaceable
from fsqueue.cli.working import quiet, working
from fsqueue.operate.report import Report
from fsqueue.operate.report import report as report_of


@click.command(epilog="Example:  fsqueue report /shared/queue -o run.html")
@takes_queue
@click.option(
    "-o", "--output", metavar="FILE", help="Where to write the page; a regular file is replaced at once. - is stdout."
)
@quiet
@as_json
def report(queue: str, output: str | None, quiet: bool, as_json: bool) -> None:
    """Write a page on how a run went: counts, throughput and ages, leases by owner, dead letters by reason, members.

    One HTML file, for any browser and for print; it needs no network and has no scripts in it. All comes from the
    queue's files, their times and their histories, so what was purged is not in it. Takes no lock and writes nothing
    in the queue; reads every file, which may take a while.
    """
    if output is None and not as_json:
        raise click.UsageError("Say where the page is to go: -o run.html, or -o - for stdout. --json needs neither.")
    if output is not None and output != "-":
        require_replaceable(output, "write -o -")
    with working("reading", "ref", quiet, lambda work: f"{work.text()} read; wrote nothing") as work:
        found = report_of(queue, work.progress)
    if output is not None:
        from fsqueue.cli.page import page

        _write(output, page(found))
        if output != "-" and not quiet:
            remark(f"wrote {output}")
    if as_json:
        one_json(_as_dict(found))


def _as_dict(found: Report) -> dict[str, object]:
    status = dataclasses.asdict(found.status)
    status["counts"] = found.status.counts._asdict()
    return {**dataclasses.asdict(found), "status": status}


def _write(output: str, text: str) -> None:
    """Write beside the file and rename: who looks meanwhile sees the old page, or the new one."""
    data = text.encode("utf-8", "backslashreplace")
    if output == "-":
        click.echo(data, nl=False)
        return
    beside = f"{output}.{secrets.token_hex(4)}.tmp"
    try:
        with open(beside, "xb") as file:
            file.write(data)
        os.replace(beside, output)
    except OSError as error:
        with suppress(OSError):
            os.unlink(beside)
        raise click.ClickException(f"cannot write {output}: {error.strerror}") from None
