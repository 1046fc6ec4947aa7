"""Put refs: write them into tmp/, and publish those that are not in the queue yet."""

from __future__ import annotations

from fsqueue.engine.casing import Casing
from fsqueue.engine.handle import Handle
from fsqueue.engine.longnames import NameLimit
from fsqueue.engine.newfiles import Written
from fsqueue.format import names
from fsqueue.format.lines import length_of

_HOLD_S = 0.005  # for which a put holds the lock at most, where the filesystem lets it do anything in that time
_REMOTE_HOLD_S = 0.1
_HANG_S = 1.0
_PAUSE_S = 0.001
_FIRST_PIECE = 256
_LEAST_PIECE = 16
_FEW = 2
_NAMES_A_LOOKUP = 16
_NAMES_A_STAT = 4


class Putter:
    """Put encoded refs on behalf of one handle."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._name_limit = NameLimit(handle.layout, handle.owner)
        self._casing = Casing(handle.layout, handle.owner)
        self._leased_names = 0  # in the last listing
        self._remote = handle.layout.remote
        self._hold_s = _REMOTE_HOLD_S if self._remote else _HOLD_S
        self._asks_in_turn = not self._remote and handle.overlap.in_turn

    def put(self, encoded: list[tuple[str, bytes]]) -> int:
        """Publish files, but for stems that are pending or leased already; return how many were published.

        CRASH: before a rename, a file in tmp/ that nobody sees; after it, a pending ref, which a sweep finds
        where its line in the order is missing.

        Args:
            encoded: stems and contents; of several with the same stem, the first is meant.
        """
        contents: dict[str, bytes] = {}
        for stem, data in encoded:
            contents.setdefault(stem, data)
        handle, published, given = self._handle, 0, len(contents)
        self._name_limit.require(contents)
        self._casing.require(contents)
        if handle.durable and not (self._remote and given <= _FEW):
            # An fsync costs more than asking, and a restarted controller puts again what is pending. On a shared mount
            # it costs nothing beside the write, and asking about a few refs costs as much as writing one.
            pending = self._pending(list(contents))
            contents = {stem: data for stem, data in contents.items() if stem not in pending}
        if contents:
            published = self._write_and_publish(contents)
        if handle.durable:
            # Also where all refs were there already: the put of them may have died before its own sync.
            handle.layout.pending.sync()
            handle.layout.leased.sync()
        if published != given:
            handle.counters.add("skipped", given - published)
        return published

    def _write_and_publish(self, contents: dict[str, bytes]) -> int:
        handle = self._handle
        written_at = handle.ops.monotonic()
        waiting = handle.moves.write_new(contents)
        try:
            self._publish(waiting, written_at)
        finally:
            if waiting:
                handle.moves.discard(waiting.values())
        handle.layout.reserve.tend_if_due(handle.order_file.content.size)
        return len(contents) - len(waiting)

    def _publish(self, waiting: dict[str, Written], written_at: float) -> None:
        """Publish in pieces, so that others come in between; what remains in waiting is in the queue already.

        A piece ends when it has taken as long as a hold of the lock may; the next one is as large as that leaves time
        for. All but the first begin after a pause, since whoever waits for the lock has to ask just then.
        """
        handle, hold_s, stems = self._handle, self._hold_s, list(waiting)
        size, done = _FIRST_PIECE, 0
        while True:
            with handle.order_file.surely:
                started = handle.ops.monotonic()
                taken = self._publish_locked(stems[done : done + size], waiting, written_at, started + hold_s)
            done += taken
            if done == len(stems):
                return
            took_s = handle.ops.monotonic() - started
            size = max(_LEAST_PIECE, min(int(taken * hold_s / max(took_s, 1e-6)), 2 * size))
            handle.ops.sleep(_PAUSE_S)

    def _publish_locked(self, stems: list[str], waiting: dict[str, Written], written_at: float, until: float) -> int:
        """Rename new refs into pending/ and name them in the order; return how many of the stems were seen to."""
        handle, remote = self._handle, self._remote
        if remote and len(stems) > _FEW:
            handle.order.header_locked()  # tells how long the backlog is
        self._casing.require(stems)  # RACE: another put may have come in between
        known = self.known(stems)
        if remote and len(stems) == 1:
            if not known:
                self._publish_one_locked(stems[0], waiting, written_at)
            return 1
        published: list[str] = []
        seen = 0
        publish, forget, monotonic = handle.moves.publish, handle.held.forget, handle.ops.monotonic
        try:
            for seen, stem in enumerate(stems, 1):
                if stem not in known:
                    publish(waiting[stem], stem, written_at)
                    del waiting[stem]
                    forget(stem)
                    published.append(stem)
                if not seen % _LEAST_PIECE and monotonic() > until:
                    break
                if remote and monotonic() > until + _HANG_S:
                    break  # RACE: meanwhile the others may have come into the queue: they are looked for again
        finally:
            if published:
                handle.counters.add("put", len(published))
                handle.order.append_locked(published)
        return seen

    def _publish_one_locked(self, stem: str, waiting: dict[str, Written], written_at: float) -> None:
        """Rename a ref into pending/, and name it in the order, at the same time where that pays.

        CRASH: a line may name a ref that never came: whoever takes its place finds no file.
        """
        handle, named = self._handle, False

        def publish() -> None:
            handle.moves.publish(waiting[stem], stem, written_at)
            del waiting[stem]
            handle.held.forget(stem)

        try:
            named = handle.overlap.beside(publish, lambda: handle.order.append_locked([stem]))
        finally:
            if not waiting:
                handle.counters.add("put")
                if not named:
                    handle.order.append_locked([stem])

    def known(self, stems: list[str]) -> set[str]:
        """Return those of the stems that are pending or leased.

        RACE: a ref that moves from one directory to the other between two looks is seen in neither. So the first one
        is looked at again: pending/, by name, where a listing of leased/ costs more than that; leased/ otherwise.
        On a shared mount, where one more look costs round trips, leased/ comes last, once: a ref that comes back to
        pending/ after the look there is replaced, and so there once all the same.
        """
        if self._remote or len(stems) <= _FEW or len(stems) * _NAMES_A_STAT < self._leased_names:
            first, second = self._pending, self._leased
        else:
            first, second = self._leased, self._pending
        known = first(stems)
        for look in (second,) if self._remote else (second, first):
            missing = [stem for stem in stems if stem not in known] if known else stems
            if missing:
                known |= look(missing)
        return known

    def _pending(self, stems: list[str]) -> set[str]:
        handle = self._handle
        pending, is_there = handle.layout.pending, handle.ops.is_there
        if self._asks_in_turn:
            fd, suffix = pending.fd, names.SUFFIX
            return {stem for stem in stems if is_there(fd, stem + suffix)}
        if self._listing_is_cheaper(stems):
            present = set(pending.listing())
            return {stem for stem in stems if stem + names.SUFFIX in present}
        handle.layout.refresh_pending()
        is_pending = handle.overlap.ahead("look", lambda stem: is_there(pending.fd, stem + names.SUFFIX), stems)
        found = set(filter(is_pending, stems))
        if found and self._remote and not handle.layout.filesystem.opening_asks:
            found.intersection_update(map(names.parse_pending, pending.listing()))  # else a name may be remembered only
        return found

    def _listing_is_cheaper(self, stems: list[str]) -> bool:
        """Return whether to list pending/. NFS: a lookup is a round trip each, and so is a listing of 1,000 names."""
        handle = self._handle
        if not self._remote or len(stems) <= _FEW:
            return False
        return handle.order.backlog_bytes < _NAMES_A_LOOKUP * sum(map(length_of, stems))

    def _leased(self, stems: list[str]) -> set[str]:
        listing = self._handle.layout.leased.listing()
        self._leased_names = len(listing)
        return set(stems).intersection([name.partition("@")[0] for name in listing]) if listing else set()
