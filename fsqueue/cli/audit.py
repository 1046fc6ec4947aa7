"""`fsqueue audit`: say which samples of a run are in a checkpoint, how often, and what became of the others."""

from __future__ import annotations

import click

from fsqueue.cli.arguments import as_json, takes_queue
from fsqueue.cli.output import count, one_json, remark, shown, table
from fsqueue.control.ledger import FileMetadataStore
from fsqueue.control.ledger.noted import noted_ledger, require_ledger
from fsqueue.engine.listing import reading
from fsqueue.features.stock import stems_stored
from fsqueue.operate.audit import KINDS, WRONG, Audit, Ledger
from fsqueue.operate.audit import audit as audit_queue
from fsqueue.records import SampleRef

_EXAMPLES = 3


@click.command(epilog="Example:  fsqueue audit /shared/queue --checkpoint-step 4000 --store /shared/features")
@takes_queue
@click.option("--checkpoint-step", type=click.IntRange(min=0), help="The checkpoint's optimizer step.")
@click.option("--store", metavar="DIR", help="The feature store, to ask which samples still have features.")
@click.option(
    "--ledger", metavar="DIR", help="The ledger over the queue; the one that its controller noted unless given."
)
@as_json
@click.pass_context
def audit(
    ctx: click.Context, queue: str, checkpoint_step: int | None, store: str | None, ledger: str | None, as_json: bool
) -> None:
    """Say which samples are in the state of a checkpoint, how often, and what became of all others.

    Counts what was acknowledged up to an optimizer step as trained; without --checkpoint-step all that was. Reads the
    files, the store, and the ledger, whose lock it takes for a moment, and changes nothing; ids come with --json. Exits
    with 1 where a sample was trained twice, or is missing: it was committed to the ledger (without one: it has
    features), and is nowhere in the queue.
    """
    with reading(queue):
        pass
    found = audit_queue(
        queue,
        checkpoint_step=checkpoint_step,
        ledger=_read_ledger(queue, ledger),
        stored=None if store is None else stems_stored(store),
    )
    if as_json:
        counts = {kind: len(ids) for kind, ids in found.ids.items()}
        one_json({"queue": queue, "checkpoint_step": checkpoint_step, "counts": counts, "ids": found.ids})
    else:
        _print(found, store is not None)
    _remark(found)
    ctx.exit(0 if found.well else 1)


def _read_ledger(queue: str, path: str | None) -> Ledger | None:
    if path is not None:
        require_ledger(path)
    path = path or noted_ledger(queue)
    if path is None:
        return None
    store: FileMetadataStore[SampleRef] = FileMetadataStore(path)
    with store:
        committed = store.all_committed_ids()
        return Ledger(committed, store.acked_steps(committed))


def _print(found: Audit, with_store: bool) -> None:
    rows = [
        [kind, f"{len(ids):,}", _examples(ids) if kind in WRONG and ids else KINDS[kind]]
        for kind, ids in found.ids.items()
        if ids or kind in WRONG or (kind == "no features" and with_store)
    ]
    table(["KIND", "SAMPLES", "WHAT"], rows)


def _examples(ids: list[str]) -> str:
    return ", ".join(map(shown, ids[:_EXAMPLES])) + (", ..." if len(ids) > _EXAMPLES else "")


def _remark(found: Audit) -> None:
    state = "the run" if found.checkpoint_step is None else f"the checkpoint of step {found.checkpoint_step}"
    wrong = [f"{count(len(found.ids[kind]), 'sample')} {kind}" for kind in WRONG if found.ids[kind]]
    said = ", ".join(wrong) or "none twice, none missing"
    remark(f"{found.queue}: {count(len(found.ids['trained']), 'sample')} in {state}; {said}")
