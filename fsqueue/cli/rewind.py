"""`fsqueue rewind`: go back to a checkpoint."""

from __future__ import annotations

from collections.abc import Callable

import click

from fsqueue.cli.arguments import as_json, dry_run, takes_queue
from fsqueue.cli.output import count, one_json, remark, shown
from fsqueue.cli.working import quiet, working
from fsqueue.control.ledger import FileMetadataStore
from fsqueue.control.ledger.noted import noted_ledger, require_ledger
from fsqueue.control.reconcile import Rewound, side_of
from fsqueue.control.reconcile import rewind as rewind_both
from fsqueue.disk.fileops import explained
from fsqueue.engine.listing import reading
from fsqueue.engine.progress import Progress
from fsqueue.engine.rewind import outlook
from fsqueue.engine.rewind import rewind as rewind_queue
from fsqueue.format import names
from fsqueue.queue import FileSampleRefQueue
from fsqueue.records import SampleRef

Each = Callable[[str], None]


@click.command(epilog="Example:  fsqueue rewind /shared/queue --after-step 4000")
@takes_queue
@click.option("--after-step", type=click.IntRange(min=0), required=True, help="The checkpoint's optimizer step.")
@click.option(
    "--ledger", metavar="DIR", help="The ledger over the queue; the one that its controller noted unless given."
)
@click.option("--force", is_flag=True, help="Also while owners that may be alive hold leases.")
@dry_run
@quiet
@as_json
def rewind(
    queue: str, after_step: int, ledger: str | None, force: bool, dry_run: bool, quiet: bool, as_json: bool
) -> None:
    """Move every ref that was acked after an optimizer step back to pending, to resume from that step's checkpoint.

    No attempt is counted. Where a controller acknowledged the refs, its ledger takes the acknowledgements back first.
    Safe to repeat, also after it was killed half way. Refused while others hold leases. Prints the ids, as they go.
    """
    with reading(queue):
        pass
    if ledger is None:
        ledger = noted_ledger(queue)
    else:
        require_ledger(ledger)
    with working("rewinding", "ref", quiet, lambda work: f"{work.text()} rewound; run it again for the others") as work:

        def each(sample_id: str) -> None:
            if not as_json:
                work.data(shown(sample_id))

        if dry_run:
            found = _would_rewind(queue, after_step, ledger, force)
            for sample_id in found.returned:
                each(sample_id)
        else:
            found = _rewind(queue, after_step, ledger, force, work.progress, each)
    if as_json:
        one_json({"after_step": after_step, "ledger": ledger, "dry_run": dry_run, **found._asdict()})
    if not quiet or found.missing:
        _remark(found, after_step, ledger, "would rewind" if dry_run else "rewound")


def _rewind(queue: str, after_step: int, ledger: str | None, force: bool, progress: Progress, each: Each) -> Rewound:
    with FileSampleRefQueue(queue) as handle:
        if ledger is None:
            handle.reclaim()  # also with force
            with explained("rewinding", queue):
                reclaimer = handle.engine.reclaimer
                return Rewound(rewind_queue(handle.handle, reclaimer, after_step, force, progress, each), [])
        store: FileMetadataStore[SampleRef] = FileMetadataStore(ledger)
        with store, side_of(handle, store) as side:
            return rewind_both(side, store, after_step, force, progress, each)


def _would_rewind(queue: str, after_step: int, ledger: str | None, force: bool) -> Rewound:
    """Return what `_rewind` would, with its refusals, and change nothing."""
    returned, live = outlook(queue, after_step, force)
    if ledger is None:
        return Rewound(returned, [])
    store: FileMetadataStore[SampleRef] = FileMetadataStore(ledger)
    with store:
        steps = store.acked_steps(store.all_committed_ids())
    live |= {names.stem_of(sample_id) for sample_id in returned}
    forgotten = [sample_id for sample_id, step in steps.items() if step is not None and step > after_step]
    return Rewound(returned, [sample_id for sample_id in forgotten if names.stem_of(sample_id) not in live])


def _remark(found: Rewound, after_step: int, ledger: str | None, verb: str) -> None:
    also = f", and the ledger {ledger}" if ledger else ""
    remark(f"{verb} {count(len(found.returned), 'ref')} to step {after_step}{also}")
    if found.missing:
        remark(
            f"not pending when the ledger has taken their acknowledgement back: {count(len(found.missing), 'sample')}; "
            "the next controller puts them anew when it reconciles"
        )
