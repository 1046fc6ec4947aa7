"""`fsqueue show`: show everything about one ref."""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime
from typing import Any

import click
import msgspec

from fsqueue.cli.arguments import as_json, takes_queue_and_one
from fsqueue.cli.output import age, data, many_json, remark, shown
from fsqueue.format import names
from fsqueue.operate import show as showing
from fsqueue.operate.show import Detail


@click.command(epilog="Example:  fsqueue show /shared/queue s17 --json | jq '.[0].ref'")
@takes_queue_and_one("ID")
@as_json
@click.pass_context
def show(ctx: click.Context, queue: str, id: str, as_json: bool) -> None:
    """Show where a ref is, who has it, what happened to it, and the ref itself.

    ID is the sample id. One id may have several files: a live one, and those of its earlier lives in done and
    failed. Exits with 1 where there is none. Takes no lock and writes nothing; on some shared
    mounts it touches order.lock, to read the time.
    """
    found = showing.show(queue, id)
    if as_json:
        many_json(_as_dict(detail) for detail in found)
    for detail in [] if as_json else found:
        _print(detail)
    if not found:
        remark(f"no ref {shown(id)} in {queue}{_hint(id)}")
        ctx.exit(1)


def _hint(text: str) -> str:
    """Name the id that is meant where a file's name was given in its place."""
    stem = text.rpartition("/")[2].partition("@")[0].removesuffix(names.SUFFIX)
    meant = names.id_of(stem) if names.is_stem(stem) else None
    return f": did you mean {shown(meant)}?" if meant and meant != text else ""


def _as_dict(detail: Detail) -> dict[str, Any]:
    return {**dataclasses.asdict(detail), "history": [msgspec.structs.asdict(event) for event in detail.history]}


def _print(detail: Detail) -> None:
    step = f" at step {detail.step}" if detail.step is not None else ""
    data(f"{shown(detail.sample_id)}  {detail.state}{step}, {age(detail.age_s)} since its last stamp, {detail.path}")
    if detail.owner is not None:
        owner = detail.owner
        data(f"  leased to {owner.owner} on {owner.host or '?'}, process {owner.pid}: {owner.process}")
    if detail.reason is not None:
        data(f"  reason: {shown(detail.reason)}")
    if detail.problem is not None:
        data(f"  no ref: the file {detail.problem}")
    data(f"  attempts: {detail.attempts}, expired leases: {detail.expiries}")
    for event in detail.history:
        when = datetime.fromtimestamp(event.at).astimezone().isoformat(" ", "seconds")
        why = f": {shown(event.reason)}" if event.reason else ""
        data(f"  {when}  {event.event}{f' under {event.owner}' if event.owner else ''}{why}")
    if detail.ref is not None:
        data("\n".join("  " + line for line in json.dumps(detail.ref, ensure_ascii=False, indent=2).splitlines()))
