"""Audit a run: which samples are in the state of a checkpoint, how often, and what became of all others.

A sample's refs are found by one listing of each state. The ledger of a controller, where there is one, says which
samples there are in all, and at which steps they were acknowledged: what was purged, or never kept, is known by it
alone.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from fsqueue.engine.layout import Layout
from fsqueue.engine.listing import File, files_in, packed_in, reading
from fsqueue.format import names

_LOOKS = 3

KINDS = {
    "trained": "acknowledged once, up to the checkpoint: in its state",
    "twice": "acknowledged more than once up to the checkpoint: trained twice in its state",
    "later": "acknowledged after the checkpoint: `fsqueue rewind` puts them back",
    "no step": "acknowledged without a step: nobody can say if they are in its state",
    "live": "pending or leased: still to be trained",
    "dead": "in failed/",
    "missing": "committed or stored, and nowhere in the queue",
    "no features": "to be trained, now or after a rewind, and without features in the store",
}
"""What an audit tells apart, in the order in which it is printed; "no features" comes on top of another kind."""

WRONG = ("twice", "missing")
"""Kinds of which a run that is well has none."""


@dataclass(frozen=True)
class Ledger:
    """Hold what a controller's ledger says.

    Attributes:
        committed: the ids of all samples, in commit order.
        steps: those that were acknowledged, and at which step; None: at none.
    """

    committed: list[str]
    steps: Mapping[str, int | None]


@dataclass(frozen=True)
class Audit:
    """Hold the result.

    Attributes:
        checkpoint_step: the optimizer step of the checkpoint; None: the end of the run, whatever its step.
        ids: the ids of each of `KINDS`.
    """

    queue: str
    checkpoint_step: int | None
    ids: dict[str, list[str]]

    @property
    def well(self) -> bool:
        return not any(self.ids[kind] for kind in WRONG)


@dataclass
class _Sample:
    """Hold what is found of one sample.

    Attributes:
        acked_at: the step of each acknowledgement in done/.
        states: which other states its refs are in.
    """

    acked_at: list[int | None] = field(default_factory=list)
    states: set[str] = field(default_factory=set)


def audit(
    path: str | os.PathLike[str],
    *,
    checkpoint_step: int | None = None,
    ledger: Ledger | None = None,
    stored: Collection[str] | None = None,
) -> Audit:
    """Say what became of each sample of a run; takes no lock and writes nothing.

    Args:
        checkpoint_step: count as trained what was acknowledged up to this optimizer step. None: all that was.
        stored: the stems of the samples whose features can be read; None: do not ask for features.

    RACE: a ref that moves between two listings shows in no state, or in two. So what seems wrong is looked for again.

    Raises:
        NotAQueueError: there is no queue at this path.
        QueueIOError: this user cannot read it.
    """
    with reading(path) as layout:
        kinds = _kinds(layout, checkpoint_step, ledger, stored)
        for _ in range(_LOOKS - 1):
            if not any(kinds[kind] for kind in WRONG):
                break
            again = _kinds(layout, checkpoint_step, ledger, stored)
            kinds = again | {kind: kinds[kind] & again[kind] for kind in WRONG}
        found = {kind: sorted(names.id_of(stem) or stem for stem in stems) for kind, stems in kinds.items()}
        return Audit(layout.path, checkpoint_step, found)


def _kinds(
    layout: Layout, checkpoint_step: int | None, ledger: Ledger | None, stored: Collection[str] | None
) -> dict[str, set[str]]:
    """Return the stems of each kind, as one look at every directory tells them."""
    samples: dict[str, _Sample] = {}
    for file in _files(layout):
        sample = samples.setdefault(file.place.stem, _Sample())
        if file.state == "done":
            sample.acked_at.append(file.place.step)
        else:
            sample.states.add(file.state)
    acked = {names.stem_of(sample_id): step for sample_id, step in ledger.steps.items()} if ledger else {}
    known = {names.stem_of(sample_id) for sample_id in ledger.committed} if ledger else set(stored or ())
    kinds: dict[str, set[str]] = {kind: set() for kind in KINDS}
    for stem in samples.keys() | known:
        kind = _kind_of(samples.get(stem), stem in acked, acked.get(stem), checkpoint_step)
        kinds[kind].add(stem)
        if stored is not None and kind in ("live", "later") and stem not in stored:
            kinds["no features"].add(stem)
    return kinds


def _files(layout: Layout) -> Iterator[File]:
    for state in ("pending", "leased", "done", "failed"):
        yield from files_in(layout, state)
    yield from packed_in(layout)


def _kind_of(sample: _Sample | None, in_ledger: bool, ledger_step: int | None, checkpoint_step: int | None) -> str:
    acked_at = sample.acked_at if sample else []
    if not acked_at and in_ledger:
        acked_at = [ledger_step]  # its file was purged, or is on its way into done/
    if len(acked_at) == 1 and acked_at[0] is None and ledger_step is not None:
        acked_at = [ledger_step]
    upto = [step for step in acked_at if checkpoint_step is None or (step is not None and step <= checkpoint_step)]
    if upto:
        return "twice" if len(upto) > 1 else "trained"
    if None in acked_at:
        return "no step"
    if acked_at:
        return "later"
    if sample is None:
        return "missing"
    return "live" if sample.states & {"pending", "leased"} else "dead"
