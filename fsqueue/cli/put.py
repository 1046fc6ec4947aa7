"""`fsqueue put`: put refs from a JSON Lines file."""

from __future__ import annotations

import codecs
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import BinaryIO

import click

from fsqueue.cli.arguments import dry_run, takes_queue_and_one
from fsqueue.cli.jsonl import BadLine, LineReader
from fsqueue.cli.output import count, remark, shown
from fsqueue.engine.contents import agree
from fsqueue.engine.listing import reading
from fsqueue.queue import FileSampleRefQueue
from fsqueue.records import Put, SampleRef

Advance = Callable[[int], None]


@click.command(epilog="Example:  jq -c . failed/*.json | fsqueue put /shared/queue -")
@takes_queue_and_one("FILE")
@click.option("--skip-bad", is_flag=True, help="Put the good lines where some are bad.")
@click.option("--batch", type=click.IntRange(min=1), default=256, show_default=True, help="Refs put at once.")
@click.option("--durable/--no-durable", default=True, show_default=True, help="Whether to fsync what is put.")
@dry_run
@click.pass_context
def put(ctx: click.Context, queue: str, file: str, skip_bad: bool, batch: int, durable: bool, dry_run: bool) -> None:
    """Put the sample refs in FILE, one JSON object a line; - is standard input.

    All lines are checked first. Where one is bad, its number and the path inside the record are reported, nothing
    is put unless --skip-bad is given, and the command exits with 1. Ids that are pending or leased are skipped.
    """
    with reading(queue) as layout, _opened(file) as lines:
        agree(layout, SampleRef, "put")
        bad: set[int] = set()
        good = 0
        with _progress("checking", lines) as advance:
            for result in _read(lines, advance):
                if isinstance(result, BadLine):
                    bad.add(result.number)
                    remark(f"{file}:{result.number}: {shown(result.where)}: {result.problem}")
                else:
                    good += 1
        if bad and not skip_bad:
            remark(f"put nothing: {count(len(bad), 'bad line')}; --skip-bad puts the others")
        elif dry_run:
            remark(f"would put {count(good, 'ref')}")
        else:
            added, known = _put(queue, lines, batch, durable)
            skipped = [f"skipped {count(known, 'ref')} that the queue has already"] if known else []
            skipped += [f"skipped {count(len(bad), 'bad line')}"] if bad else []
            remark(", ".join([f"put {count(added, 'ref')}", *skipped]))
    ctx.exit(1 if bad else 0)


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


def _read(lines: BinaryIO, advance: Advance) -> Iterator[SampleRef | BadLine]:
    reader = LineReader()
    lines.seek(len(codecs.BOM_UTF8) if lines.seek(0) == 0 and lines.read(3) == codecs.BOM_UTF8 else 0)
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield reader.read(number, line)
        advance(len(line))


def _put(queue: str, lines: BinaryIO, batch: int, durable: bool) -> Put:
    waiting: list[SampleRef] = []
    done: list[Put] = []
    with FileSampleRefQueue(queue, durable=durable) as handle, _progress("putting", lines) as advance:
        for result in _read(lines, advance):
            if isinstance(result, SampleRef):
                waiting.append(result)
            if len(waiting) == batch:
                done.append(handle.put(waiting))
                waiting = []
        done.append(handle.put(waiting))
    return Put(sum(put.added for put in done), sum(put.skipped for put in done))


@contextmanager
def _progress(what: str, lines: BinaryIO) -> Iterator[Advance]:
    """Show a progress bar over the bytes of a file, on stderr, where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda size: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=lines.seek(0, 2))
        yield lambda size: progress.update(task, advance=size)
