"""What happens to the queue from outside during a soak: kills, stops, moves by hand, a damaged hint, a full disk.

Each kind comes at random moments around its interval. What may have an effect on a ref is recorded, as a call of
the owner ``hand``.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from fsqueue.format import names
from history.recording import OVERLAP, Log
from soaking.crew import Crew
from soaking.disk import SmallDisk
from soaking.site import Clock, Settings, Site, make_ref

HAND = "hand"
CHAOS = "chaos.jsonl"
_FULL_FOR_S = (0.3, 1.5)
_STOP_IN_LEASES = (1.2, 2.0)
_KEPT_DONE = 2000


@dataclass
class _Due:
    """An action and when it is due next.

    Attributes:
        action: returns False where it found nothing to act on.
        done: True once it had an effect.
    """

    action: Callable[[], bool | None]
    every_s: float
    at: float
    done: bool = False


class Chaos:
    """The chaos of one node.

    Args:
        first: whether this is the first node. It alone moves what is not leased, so that no two hands meet.
    """

    def __init__(
        self, site: Site, settings: Settings, crew: Crew, clock: Clock, kill_every_s: float, *,
        first: bool, disk: SmallDisk | None,
    ) -> None:  # fmt: skip
        self.counts: Counter[str] = Counter()
        self._crew = crew
        self._clock = clock
        self._disk = disk
        self._full_until: float | None = None
        self._lease_s = settings.lease_timeout_s
        self._queue = site.queue_of(settings)
        self._rng = Random(f"{settings.seed}/chaos/{'first' if first else site.node}")
        self._log = Log.to_file(site.logs / CHAOS, clock)
        self._hand_made = f"u-{HAND}-{site.node}"
        actions: list[tuple[Callable[[], bool | None], float]] = [
            (lambda: crew.kill_one(self._rng), kill_every_s),
            (self._stop, 1.5 * kill_every_s),
            (self._move_leased, kill_every_s / 2),
            (self._damage_hint, 3 * kill_every_s),
            (self._delete_record, 3 * kill_every_s),
        ]
        if first:
            actions += [
                (self._move_others, kill_every_s / 2), (self._put_by_hand, 2 * kill_every_s), (self._purge, 5.0)
            ]  # fmt: skip
        if disk:
            actions.append((self._fill, 5 * kill_every_s))
        self._due = [_Due(action, every, clock() + every * self._rng.random()) for action, every in actions]

    def tick(self) -> None:
        """Do what is due."""
        now = self._clock()
        if self._disk and self._full_until is not None and now >= self._full_until:
            self._disk.empty()
            self._full_until = None
        for due in self._due:
            if now >= due.at:
                due.done |= due.action() is not False
                due.at = self._clock() + due.every_s * self._rng.uniform(0.3, 1.7)

    def owes(self, ends_at: float) -> bool:
        """Return True where something that was due before the end has yet to be done, the machine being too slow."""
        return any(due.at < ends_at and not due.done for due in self._due)

    def end(self) -> None:
        if self._disk:
            self._disk.empty()

    def _stop(self) -> bool:
        return self._crew.stop_one(self._rng, self._lease_s * self._rng.uniform(*_STOP_IN_LEASES))

    def _fill(self) -> None:
        if self._disk and self._full_until is None:
            self._disk.fill()
            self._full_until = self._clock() + self._rng.uniform(*_FULL_FOR_S)
            self.counts["disk filled"] += 1

    def _some(self, state: str, count: int, wanted: Callable[[str], bool] = lambda name: True) -> list[str]:
        found = [name for name in os.listdir(self._queue / state) if wanted(name)]
        return self._rng.sample(found, min(count, len(found)))

    def _move_leased(self) -> None:
        """`mv leased/<id>@<owner>+<claim>.json pending/<id>.json`: takes leases away."""
        for name in self._some("leased", self._rng.randint(1, 4)):
            parsed = names.parse_leased(name)
            if parsed:
                self._move("leased", name, "pending", parsed[0])

    def _move_others(self) -> None:
        """Dead letters and done refs once more, pending ones out of the way; only refs that nobody puts again."""
        source = self._rng.choice(("failed", "failed", "done", "pending"))
        target = "failed" if source == "pending" else "pending"
        for name in self._some(source, 3, lambda name: name.startswith("u-")):
            parsed = names.parse_done(name)
            if parsed:
                self._move(source, name, target, parsed[0])

    def _move(self, source: str, name: str, target: str, stem: str) -> None:
        sample_id = names.id_of(stem)
        if sample_id is None:
            return
        with self._recorded("move", sample_id) as happened:
            os.rename(self._queue / source / name, self._queue / target / names.ref_file(stem))
            happened()
            self.counts[f"moved {source} to {target}"] += 1

    def _put_by_hand(self) -> None:
        """A file made elsewhere on the same filesystem, and moved in."""
        self.counts["made by hand"] += 1
        ref = make_ref(f"{self._hand_made}-{self.counts['made by hand']}")
        elsewhere = self._queue.parent / "made-by-hand.json"
        try:
            elsewhere.write_text(json.dumps(asdict(ref), indent=2))
        except OSError:  # the disk is full
            elsewhere.unlink(missing_ok=True)
            return
        with self._recorded("put", ref.sample_id) as happened:
            elsewhere.rename(self._queue / "pending" / names.ref_file(names.stem_of(ref.sample_id)))
            happened()

    @contextmanager
    def _recorded(self, kind: str, sample_id: str) -> Iterator[Callable[[], None]]:
        """One call of the hand's; where the file had moved on before, none."""
        done = False

        def happened() -> None:
            nonlocal done
            done = True

        key = self._log.begin(kind, HAND, [sample_id])
        try:
            yield happened
        except FileNotFoundError:
            pass
        finally:
            self._log.end(key, **({} if done else {"ids": []}))

    def _purge(self) -> None:
        """`rm` in done/ and failed/: half of what is there, where it is much."""
        done = os.listdir(self._queue / "done")
        if len(done) > _KEPT_DONE:
            self._remove("done", self._rng.sample(done, len(done) // 2))
        buried = [name for name in os.listdir(self._queue / "failed") if name.startswith("u-")]
        stems = [(name, names.parse_ref(name)) for name in buried[: max(0, len(buried) - _KEPT_DONE // 4)]]
        for name, stem in stems:
            sample_id = names.id_of(stem) if stem else None
            if sample_id is not None:
                self._log.saw("arrived", HAND, [sample_id])
                self._remove("failed", [name])

    def _remove(self, state: str, some: list[str]) -> None:
        for name in some:
            (self._queue / state / name).unlink(missing_ok=True)
        self.counts[f"removed from {state}"] += len(some)

    def _delete_record(self) -> None:
        """`rm owners/<owner>.json`; not where its mtime is a heartbeat, whose leases would end by that."""
        for name in self._some("owners", 1):
            path = self._queue / "owners" / name
            try:
                if json.loads(path.read_bytes())["heartbeat_s"] is None:
                    path.unlink()
                    self.counts["owner record deleted"] += 1
            except FileNotFoundError:
                continue

    def _damage_hint(self) -> None:
        path = self._queue / "order.lock"
        name, damage = self._rng.choice((("deleted", self._delete), ("torn", self._tear), ("garbled", self._garble)))
        try:
            damage(path)
        except OSError:  # it is missing, or the disk is full
            return
        self.counts[f"order hint {name}"] += 1

    def _delete(self, path: Path) -> None:
        """Who has the lock goes on in the old file, while others may lock a new one."""
        key = self._log.begin(OVERLAP, HAND)
        try:
            path.unlink()
        finally:
            self._log.end(key)

    def _tear(self, path: Path) -> None:
        os.truncate(path, self._rng.randint(0, path.stat().st_size))

    def _garble(self, path: Path) -> None:
        with open(path, "r+b") as file:
            file.seek(self._rng.randint(0, path.stat().st_size))
            file.write(self._rng.choice((b"\0" * 100, b"../../etc/passwd\n", b"#", self._rng.randbytes(200))))
