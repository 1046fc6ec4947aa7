"""Say how queues are as metrics of Prometheus: names and units by its conventions, cheap enough for every scrape.

Needs the prometheus-client library, which only `fsqueue metrics` imports.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric

from fsqueue.engine.listing import reading
from fsqueue.errors import CorruptRefError, FsQueueError
from fsqueue.format import names
from fsqueue.format.untyped import sight
from fsqueue.operate.reasons import kind_of_reason
from fsqueue.operate.status import Status, status

_READS_A_LOOK = 500
_REASONS = 20

OTHER, UNREAD = "(other)", "(not read yet)"


@dataclass
class DeadLetters:
    """Remember the reasons of a queue's dead letters from one look to the next: each is read once, a few at a time.

    Digits in a reason are replaced, and all but the most frequent reasons are one: a label of Prometheus must not take
    as many values as there are samples.
    """

    path: str
    _reasons: dict[str, str] = field(default_factory=dict)

    def count(self) -> Counter[str]:
        """Look at failed/, and count the dead letters of each reason."""
        with reading(self.path) as layout:
            there = {name for name in layout.failed.listing() if names.parse_ref(name)}
            self._reasons = {name: reason for name, reason in self._reasons.items() if name in there}
            unread = sorted(there - self._reasons.keys())
            for name in unread[:_READS_A_LOOK]:
                try:
                    data = layout.ops.read_file(layout.failed.fd, name)
                except FileNotFoundError:
                    continue
                except CorruptRefError as error:
                    self._reasons[name] = error.reason
                except OSError:
                    continue  # one file that cannot be read is no reason to call the queue down: it stays unread
                else:
                    self._reasons[name] = sight(data).bookkeeping.reason or ""
        found = Counter(kind_of_reason(reason) for reason in self._reasons.values())
        kept = Counter(dict(found.most_common(_REASONS)))
        kept[OTHER] = found.total() - kept.total()
        kept[UNREAD] = len(there) - found.total()
        return +kept


class Exporter:
    """Look at queues whenever somebody collects; one that cannot be looked at is down, and the others are not.

    Several scrapers may collect at once, each in a thread of the server's: they look one after another.

    Attributes:
        errors: why queues could not be looked at the last time, by path.
    """

    def __init__(self, paths: Iterable[str | os.PathLike[str]]) -> None:
        self._letters = [DeadLetters(os.path.abspath(os.path.expanduser(path))) for path in paths]
        self.errors: dict[str, FsQueueError] = {}
        self._looking = threading.Lock()

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics, as a collector of prometheus-client does."""
        metrics = _Metrics()
        with self._looking:
            self.errors.clear()
            for letters in self._letters:
                try:
                    metrics.add(letters.path, status(letters.path), letters.count())
                except FsQueueError as error:
                    self.errors[letters.path] = error
                metrics.up.add_metric([letters.path], float(letters.path not in self.errors))
        yield from vars(metrics).values()


class _Metrics:
    """Hold the metrics of all queues, one family each."""

    def __init__(self) -> None:
        self.up = GaugeMetricFamily("fsqueue_up", "Whether the queue could be looked at.", labels=["queue"])
        self.queue = InfoMetricFamily("fsqueue_queue", "What the queue stores of itself.", labels=["queue"])
        self.refs = GaugeMetricFamily("fsqueue_refs", "Refs in each state.", labels=["queue", "state"])
        self.paused = GaugeMetricFamily("fsqueue_paused", "Whether the queue is paused.", labels=["queue"])
        self.delayed = GaugeMetricFamily(
            "fsqueue_delayed_refs", "Refs in leased/ that nobody holds: they have failed, and wait to come again.",
            labels=["queue"],
        )  # fmt: skip
        self.dead = GaugeMetricFamily(
            "fsqueue_dead_letters", "Refs in failed/, by the first line of their reason.", labels=["queue", "reason"]
        )
        self.pending_age = GaugeMetricFamily(
            "fsqueue_oldest_pending_age_seconds", "How long the ref that comes next has been pending.",
            labels=["queue"],
        )  # fmt: skip
        self.lease_age = GaugeMetricFamily(
            "fsqueue_oldest_lease_age_seconds", "How long ago the oldest lease was taken or renewed.", labels=["queue"]
        )
        self.timeout = GaugeMetricFamily(
            "fsqueue_lease_timeout_seconds", "When an unrenewed lease expires; none where it never does.",
            labels=["queue"],
        )  # fmt: skip
        self.owners = GaugeMetricFamily(
            "fsqueue_owners", "Handles that have a record or a lease, by what is known of their process.",
            labels=["queue", "process"],
        )  # fmt: skip
        self.members = GaugeMetricFamily(
            "fsqueue_members", "Members of the stream, by role and state.", labels=["queue", "role", "state"]
        )
        self.expected = GaugeMetricFamily(
            "fsqueue_members_expected", "How many members of a role the stream has in all.", labels=["queue", "role"]
        )

    def add(self, path: str, seen: Status, dead: Counter[str]) -> None:
        """Add what one queue shows."""
        self.queue.add_metric([path], {"run_id": seen.run_id or "", "lock": seen.lock})
        for state, count in seen.counts._asdict().items():
            self.refs.add_metric([path, state], count)
        self.paused.add_metric([path], float(seen.paused is not None))
        self.delayed.add_metric([path], seen.delayed)
        for reason, count in dead.items():
            self.dead.add_metric([path, reason], count)
        ages = (
            (self.pending_age, seen.oldest_pending_age_s),
            (self.lease_age, seen.oldest_lease_age_s),
            (self.timeout, seen.lease_timeout_s),
        )
        for family, value in ages:
            if value is not None:
                family.add_metric([path], value)
        for process in ("alive", "dead", "unknown"):
            self.owners.add_metric([path, process], sum(owner.process == process for owner in seen.owners))
        if seen.stream is not None:
            counted = Counter((member.role, member.state) for member in seen.stream.members)
            for (role, state), count in sorted(counted.items()):
                self.members.add_metric([path, role, state], count)
            for role in sorted({member.role for member in seen.stream.members}):
                self.expected.add_metric([path, role], seen.stream.expected(role))
