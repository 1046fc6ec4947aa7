"""`fsqueue put`: put refs from a JSON Lines file."""

from __future__ import annotations

import codecs
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import BinaryIO

import click

from fsqueue.cli.arguments import as_json, dry_run, takes_queue_and_one
from fsqueue.cli.jsonl import BadLine, LineReader
from fsqueue.cli.output import count, one_json, remark, shown
from fsqueue.cli.working import quiet, working
from fsqueue.engine.contents import agree
from fsqueue.engine.listing import reading
from fsqueue.queue import FileSampleRefQueue
from fsqueue.records import Put, SampleRef


@click.command(epilog="Example:  jq -c . failed/*.json | fsqueue put /shared/queue -")
@takes_queue_and_one("FILE")
@click.option("--skip-bad", is_flag=True, help="Put the good lines where some are bad.")
@click.option("--batch", type=click.IntRange(min=1), default=256, show_default=True, help="Refs put at once.")
@click.option("--durable/--no-durable", default=True, show_default=True, help="Whether to fsync what is put.")
@dry_run
@quiet
@as_json
@click.pass_context
def put(
    ctx: click.Context,
    queue: str,
    file: str,
    skip_bad: bool,
    batch: int,
    durable: bool,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Put the sample refs in FILE, one JSON object a line; - is standard input.

    All lines are checked first. Where one is bad, its number and the path inside the record are reported, nothing
    is put unless --skip-bad is given, and the command exits with 1. Ids that are pending or leased are skipped.
    """
    with reading(queue) as layout, _opened(file) as lines:
        agree(layout, SampleRef, "put")
        good, bad = _checked(file, lines, quiet)
        stopped = bool(bad) and not skip_bad
        done = Put(0, 0)
        if not (stopped or dry_run):
            done = _put(queue, lines, good, batch, durable, quiet)
    if as_json:
        counts = {"good": good, "bad": len(bad), "added": done.added, "skipped": done.skipped}
        one_json({"file": file, **counts, "dry_run": dry_run})
    if stopped:
        remark(f"put nothing: {count(len(bad), 'bad line')}; --skip-bad puts the others")
    elif not quiet:
        remark(f"would put {count(good, 'ref')}" if dry_run else _summary(done, len(bad)))
    ctx.exit(1 if bad else 0)


def _summary(done: Put, bad: int) -> str:
    skipped = [f"skipped {count(done.skipped, 'ref')} that the queue has already"] if done.skipped else []
    skipped += [f"skipped {count(bad, 'bad line')}"] if bad else []
    return ", ".join([f"put {count(done.added, 'ref')}", *skipped])


def _checked(file: str, lines: BinaryIO, quiet: bool) -> tuple[int, set[int]]:
    """Check all lines; return how many are good, and the numbers of the bad ones."""
    bad: set[int] = set()
    good = 0
    with working("checking", "byte", quiet, lambda work: "put nothing") as work:
        size = lines.seek(0, 2)
        for result, read in _read(lines):
            if isinstance(result, BadLine):
                bad.add(result.number)
                work.remark(f"{file}:{result.number}: {shown(result.where)}: {result.problem}")
            else:
                good += 1
            work.progress(read, size)
    return good, bad


@contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    """Open FILE so that it can be read twice: what cannot be rewound is copied to a temporary file."""
    with ExitStack() as stack:
        try:
            source: BinaryIO = sys.stdin.buffer if file == "-" else stack.enter_context(open(file, "rb"))
            if not source.seekable() or file == "-":
                copy: BinaryIO = stack.enter_context(tempfile.TemporaryFile())
                shutil.copyfileobj(source, copy)
                source = copy
        except OSError as error:
            raise click.ClickException(f"cannot read {file}: {error.strerror}") from None
        yield source


def _read(lines: BinaryIO) -> Iterator[tuple[SampleRef | BadLine, int]]:
    """Yield what each line holds, and how many bytes were read by then."""
    reader = LineReader()
    lines.seek(len(codecs.BOM_UTF8) if lines.seek(0) == 0 and lines.read(3) == codecs.BOM_UTF8 else 0)
    size = 0
    for number, line in enumerate(lines, 1):
        size += len(line)
        if line.strip():
            yield reader.read(number, line), size


def _put(queue: str, lines: BinaryIO, total: int, batch: int, durable: bool, quiet: bool) -> Put:
    waiting: list[SampleRef] = []
    added = skipped = 0

    def flush() -> None:
        nonlocal added, skipped, waiting
        put = handle.put(waiting)
        added, skipped, waiting = added + put.added, skipped + put.skipped, []
        work.progress(added + skipped, total)

    with (
        working(
            "putting", "ref", quiet, lambda work: f"{work.text()} put; run it again, and those are skipped"
        ) as work,
        FileSampleRefQueue(queue, durable=durable) as handle,
    ):
        for result, _ in _read(lines):
            if isinstance(result, SampleRef):
                waiting.append(result)
            if len(waiting) == batch:
                flush()
        flush()
    return Put(added, skipped)
