"""Bring refs back from done/ to pending/, those in segments too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import nullcontext, suppress

from fsqueue.disk.fileops import despite_errors
from fsqueue.engine.annotations import Change, changed, record
from fsqueue.engine.handle import Handle
from fsqueue.engine.held import Claim
from fsqueue.engine.packing.copies import Copies
from fsqueue.engine.packing.parts import ALL, Part
from fsqueue.engine.packing.unpack import unpack
from fsqueue.engine.put import Putter
from fsqueue.format import names

Acked = tuple[int, str, str]
"""An acknowledgement's step, the ref's stem, and the file's name in done/."""


class BringingBack:
    """Move what was acknowledged after a step, for the length of a with block.

    A ref that has a file of its own is leased on its way, which fences others off. The copy of a packed one, which
    nobody else knows, goes to pending/ at once on a local mount, under the lock, as what is put does. On a shared one
    the lock may exclude no other node, and a queue may have none, so copies are leased on their way there, too.
    """

    def __init__(self, handle: Handle, after_step: int, part: Part = ALL) -> None:
        self._handle = handle
        self._after_step = after_step
        self._part = part
        self._now = handle.clock.now()
        self._copies = Copies(handle, lambda line: changed(line.data, self._rewound(line.step)))

    def _rewound(self, step: int | None) -> Change:
        reason = f"acked at step {step}, rewound to step {self._after_step}"
        return record("rewound", self._now, self._handle.owner, reason)

    def __enter__(self) -> BringingBack:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Make durable what was moved, and end what is left of its segments; an earlier error is the one to report.

        CRASH: what has left done/ is durable where it is before the segment goes that it came from.
        """
        layout, unpacked = self._handle.layout, self._copies.used
        with suppress(OSError) if error is not None else nullcontext():
            if self._handle.durable or unpacked:
                for directory in (layout.pending, layout.leased, layout.done):
                    directory.sync()
            if unpacked:
                self._copies.end()

    def acked_later(self) -> list[Acked]:
        """List what was acked after the step, in the order in which it is to come again."""
        done = unpack(self._handle, self._wanted, self._copies, self._part)
        parsed = ((names.parse_done(name), file) for name, file in done.files.items())
        steps = ((of[1], of[0], file) for of, file in parsed if of and self._wanted(*of))
        return by_last_life((step, stem, file) for step, stem, file in steps if step is not None)

    def _wanted(self, stem: str, step: int | None) -> bool:
        return step is not None and step > self._after_step and self._part.has(stem)

    def put_back(self, batch: list[Acked], returned: list[str]) -> set[Acked]:
        """Move what of a batch is not live to pending/; return all but what was gone from done/.

        RACE: a put under the lock has its look for the id and its publishing behind it or before it, and one that
        comes later finds the ref leased. Without the lock, a look before the fetching alone would miss a ref whose
        next life begins in between: so it is looked for once more afterwards.
        """
        handle = self._handle
        fetched: dict[Acked, Claim] = {}
        moved: set[Acked] = set()
        named = False
        try:
            live, named = self._fetch(batch, fetched, moved)
            self._give_back(fetched, moved)
        except BaseException:
            back_stems = {stem for _, stem, _ in moved}
            handle.strays.add(claim for claim in fetched.values() if claim.stem not in back_stems)
            raise
        finally:
            back = list(dict.fromkeys(entry[1] for entry in batch if entry in moved))
            if not named:
                handle.order.append_soon(back)
            returned += back
        return live.union(fetched, moved)

    def _fetch(self, batch: list[Acked], fetched: dict[Acked, Claim], moved: set[Acked]) -> tuple[set[Acked], bool]:
        """Move copies to pending/, and note them in moved; move other files to leased/@me, and note them in fetched.

        The lives of one ref get one claim: the last one to be moved replaces those before.

        Returns:
            Those that are live, and whether all that was moved is named in the order.
        """
        handle, copies = self._handle, self._copies
        claims: dict[str, Claim] = {}
        stems = [stem for _, stem, _ in batch]
        with handle.order_file.soon as held:
            excludes = held and not handle.layout.remote and handle.layout.settings.lock != "none"
            if held:
                handle.order.header_locked()  # how long the backlog is decides how to look through it
            known = Putter(handle).known(stems)
            lives = Counter(stems)

            def fetch(entry: Acked) -> None:
                _, stem, name = entry
                if stem in known:
                    return
                if excludes and lives[stem] == 1 and name in copies.stamps:
                    if handle.moves.publish_copy(name, stem):
                        moved.add(entry)
                        del copies.stamps[name]
                        handle.held.forget(stem)
                    return
                if stem not in claims:
                    claims[stem] = handle.moves.new_claim(stem)
                fetched[entry] = claims[stem]
                if not handle.moves.fetch(handle.layout.done, name, claims[stem]):
                    del fetched[entry]

            try:
                despite_errors(fetch, batch)
            finally:
                named = held and not claims
                if named and moved:
                    handle.order.append_locked([entry[1] for entry in batch if entry in moved])
        return {entry for entry in batch if entry[1] in known}, named

    def _give_back(self, fetched: dict[Acked, Claim], moved: set[Acked]) -> None:
        """Move what was fetched to pending/, and note it in moved; what is live by now goes to done/ again."""
        handle, copies = self._handle, self._copies
        layout, moves = handle.layout, handle.moves
        if not fetched:
            return
        holders, mine = moves.holders(), {claim.name for claim in fetched.values()}
        layout.refresh_pending()

        def give_back(entry: Acked) -> None:
            step, stem, name = entry
            claim = fetched[entry]
            elsewhere = [lease for lease in holders.get(stem, []) if lease.file not in mine]
            if elsewhere or self._is_pending(stem):
                moves.move_to_done(layout.leased, claim.name, names.done_file(stem, step), claim)
                return
            told = name in copies.stamps or moves.annotate(claim, self._rewound(step)) is not None
            if told and moves.give_back(claim):
                handle.held.forget(stem)
                moved.add(entry)

        despite_errors(give_back, list(fetched))

    def _is_pending(self, stem: str) -> bool:
        pending, name = self._handle.layout.pending, names.ref_file(stem)
        return self._handle.ops.is_there(pending.fd, name) and self._handle.moves.holds(pending, name)


def by_last_life(later: Iterable[Acked]) -> list[Acked]:
    """Sort by step, the earliest first; all lives of one ref stand where its last one does."""
    entries = sorted(later)
    if len({stem for _, stem, _ in entries}) == len(entries):
        return entries
    found: dict[str, list[Acked]] = {}
    for entry in entries:
        found.setdefault(entry[1], []).append(entry)
    return [entry for lives in sorted(found.values(), key=lambda lives: lives[-1]) for entry in lives]


def batches(later: list[Acked], size: int) -> Iterator[list[Acked]]:
    """Cut into parts of about this size; the lives of one ref share one, where the last replaces those before."""
    start = 0
    while start < len(later):
        end = min(start + size, len(later))
        while end < len(later) and later[end][1] == later[end - 1][1]:
            end += 1
        yield later[start:end]
        start = end
