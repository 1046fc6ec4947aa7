"""The history of a queue's calls, and the checker that simulator, soak and benchmark share.

In the manner of Jepsen's total-queue, with leases: a history is a list of calls with the times at which they were
invoked and returned, by one clock. A call that never returned, or raised, may or may not have happened. What must
hold, whatever happened in between:

- lost: a put returned, and its ref was neither delivered nor settled afterwards. Must be none.
- unexpected: a ref came out that nobody had put, or that was settled for good and not put again. Must be none.
- double leases: two owners each had a lease that cannot have expired yet, at one instant. Must be none.
- broken leases: an owner was told that it had lost a lease that cannot have expired yet. Must be none. (An answer
  that comes so late that the ref has gone on meanwhile is no proof: a lost reply leaves the owner in doubt.)
- delivered again, though nobody gave it back: each must be explained, by an earlier lease that may have
  expired, or by two calls that queue the same id while the lock did not exclude.
- recovered: a put did not return, and its ref was delivered all the same. Counted.

A lease surely runs for the timeout from the moment at which the get, or the renewal, was *invoked*, since its
stamp comes later; and its owner surely knows of it once the call has returned.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf

from history.recording import OVERLAP, Call

_SETTLES = ("ack", "fail", "release", "move")
_ENDS_LIFE = ("ack", "fail", "arrived")
_GIVES_BACK = ("fail", "release", "requeue", "move")
_QUEUES = ("put", "requeueing")  # the latter while it lasts, whatever comes of it


_FINDINGS = ("lost", "unexpected", "double_leases", "broken_leases", "unexplained")


@dataclass
class Verdict:
    """What the checker found; the lists hold one line a finding and must be empty."""

    puts: int = 0
    deliveries: int = 0
    acked: int = 0
    recovered: int = 0
    again: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    double_leases: list[str] = field(default_factory=list)
    broken_leases: list[str] = field(default_factory=list)
    unexplained: list[str] = field(default_factory=list)

    def problems(self) -> list[str]:
        """All findings, each with its kind in front."""
        return [f"{kind.replace('_', ' ')}: {line}" for kind in _FINDINGS for line in getattr(self, kind)]

    def summary(self) -> str:
        causes = ", ".join(f"{cause} {count}" for cause, count in sorted(self.again.items()))
        found = ", ".join(f"{kind.replace('_', ' ')} {len(getattr(self, kind))}" for kind in _FINDINGS)
        return (
            f"puts {self.puts}, deliveries {self.deliveries}, acked {self.acked}, recovered {self.recovered}, "
            f"delivered again {self.again.total()} ({causes or 'no cause needed'}), {found}"
        )

    def add(self, other: Verdict) -> None:
        """Add another history's counts and findings."""
        self.puts += other.puts
        self.deliveries += other.deliveries
        self.acked += other.acked
        self.recovered += other.recovered
        self.again.update(other.again)
        for kind in _FINDINGS:
            getattr(self, kind).extend(getattr(other, kind))


@dataclass
class _Span:
    """A time in which an owner surely has a lease, and knows it.

    Attributes:
        begun_at: when the lease may have been taken at the earliest.
        lapsed: it was renewed only after it may have expired.
    """

    owner: str
    file: int | None
    begun_at: float
    since: float
    until: float
    lapsed: bool = False


def check(
    calls: Iterable[Call],
    lease_timeout_s: float | None,
    *,
    lock_excludes: bool = True,
    deduplicates: bool = True,
    grain_s: float = 0.02,
) -> Verdict:
    """Check the history of a queue that has been drained at its end.

    Args:
        lock_excludes: False where it may not and nobody recorded when; else only `OVERLAP` calls say so.
        deduplicates: False where a put may see names that are gone, or miss some that are there: of an id that was
            put before, it may queue a second file, or none though the first one was settled meanwhile.
        grain_s: how coarse the filesystem's timestamps are, seconds.
    """
    history = sorted(calls, key=lambda call: call.invoked_at)
    about: dict[str, list[Call]] = defaultdict(list)
    for call in history:
        for sample_id in call.ids:
            about[sample_id].append(call)
    overlaps = None if not lock_excludes else [call for call in history if call.kind == OVERLAP]
    deaths = {call.owner: call.invoked_at for call in history if call.kind == "died"}
    observed = any(call.kind == "arrived" for call in history)
    timeout_s = inf if lease_timeout_s is None else lease_timeout_s
    verdict = Verdict()
    for sample_id, concerned in about.items():
        _History(sample_id, concerned, overlaps, deduplicates, deaths, timeout_s, grain_s, observed, verdict).check()
    return verdict


class _History:
    """The checks, on the calls that concern one id."""

    def __init__(
        self,
        sample_id: str,
        calls: list[Call],
        overlaps: list[Call] | None,
        deduplicates: bool,
        deaths: dict[str, float],
        timeout_s: float,
        grain_s: float,
        observed: bool,
        verdict: Verdict,
    ) -> None:
        self._id = sample_id
        self._calls = calls
        self._overlaps = overlaps
        self._deduplicates = deduplicates
        self._deaths = deaths
        self._timeout_s = timeout_s
        self._grain_s = grain_s
        self._observed = observed
        self._verdict = verdict
        self._puts = [call for call in calls if call.kind == "put"]
        self._gets = sorted((call for call in calls if call.kind == "get"), key=lambda call: call.over_at)
        self._cuts = self._entitled_strangers()

    def check(self) -> None:
        verdict = self._verdict
        verdict.puts += len(self._puts)
        verdict.deliveries += len(self._gets)
        verdict.acked += any(call.kind == "ack" and call.done_with(self._id) for call in self._calls)
        verdict.recovered += bool(self._gets) and all(put.returned_at is None for put in self._puts)
        self._check_lost()
        self._check_unexpected()
        spans = [span for owner in dict.fromkeys(get.owner for get in self._gets) for span in self._spans(owner)]
        self._check_double(spans)
        self._check_again(spans)

    def _check_lost(self) -> None:
        """A delivery, or the end of a life, not before the put was invoked, is what a put must lead to."""
        seen = [call.over_at for call in self._calls if call.kind == "get" or self._may_have_ended(call)]
        for put in self._puts if self._deduplicates else self._puts[:1]:
            if put.returned_at is not None and not any(at >= put.invoked_at for at in seen):
                self._verdict.lost.append(f"{self._id}, put by {put.owner} at {put.invoked_at:.3f}")

    def _may_have_ended(self, call: Call) -> bool:
        """Whether the call may have ended a life; an acknowledgement of an unknown id does not.

        One that reports the id as lost may: a ref that is back in pending/ goes to done/ all the same. Where an
        observer watched, only what it saw counts.
        """
        if self._observed or call.kind == "arrived":
            return call.kind == "arrived"
        ends = call.kind == "ack" or (call.kind == "fail" and call.final)
        return ends and any(get.owner == call.owner for get in self._gets)

    def _check_unexpected(self) -> None:
        starts = [call for call in self._calls if call.kind in ("put", "requeue", "move")]
        ends = [call for call in self._calls if call.done_with(self._id) and self._surely_ended(call)]
        for get in self._gets:
            before = [start for start in starts if start.invoked_at <= get.over_at]
            if not before:
                self._verdict.unexpected.append(f"{self._id}, delivered to {get.owner} at {get.over_at:.3f}, never put")
            for end in ends:
                if end.over_at >= get.invoked_at or any(start.over_at >= end.invoked_at for start in before):
                    continue
                if not self._lock_failed():
                    self._verdict.unexpected.append(
                        f"{self._id}, delivered to {get.owner} at {get.over_at:.3f}, after its {end.kind} by "
                        f"{end.owner} at {end.over_at:.3f}"
                    )
                break

    def _surely_ended(self, call: Call) -> bool:
        """Whether a call that succeeded ended the ref's life; one by id leaves what is pending and was never leased."""
        if not self._was_free_to(call):
            return False
        arrived = self._observed and any(c.kind == "arrived" and c.overlaps(call) for c in self._calls)
        return arrived or self._knows_its_lease(call)

    def _was_free_to(self, call: Call) -> bool:
        """Whether the owner had not given the ref back before: then a further call does nothing."""
        own = [c for c in self._calls if c.owner == call.owner and c.over_at <= call.invoked_at]
        return not own or own[-1].kind in ("get", "put", "renew", "beat")

    def _entitled_strangers(self) -> list[Call]:
        """Calls that settle the id by name, whoever holds it: they are made by hand, or by an owner that did not
        lease it since it was opened, or since it put or rewound it itself."""
        return [
            call
            for call in self._calls
            if call.kind == "move" or (call.kind in _SETTLES and not self._knows_its_lease(call))
        ]

    def _knows_its_lease(self, call: Call) -> bool:
        own = [
            c
            for c in self._calls
            if c.owner == call.owner and c.kind in ("get", "put", "rewind") and c.over_at <= call.over_at
        ]
        return bool(own) and own[-1].kind == "get"

    def _spans(self, owner: str) -> list[_Span]:
        """When an owner surely had a lease; what it was told meanwhile is checked on the way."""
        spans: list[_Span] = []
        for call in self._calls:
            if call.owner != owner:
                continue
            current = spans[-1] if spans else None
            if call.kind == "get":
                file = dict(zip(call.ids, call.files, strict=False)).get(self._id)
                spans.append(
                    self._cut(_Span(owner, file, call.invoked_at, call.over_at, call.invoked_at + self._timeout_s))
                )
            elif current is not None:
                self._follow(call, current, spans)
        return spans

    def _follow(self, call: Call, current: _Span, spans: list[_Span]) -> None:
        if self._id in call.lost:
            surely_held = current.until - self._grain_s >= call.over_at and not current.lapsed
            if surely_held and not self._took_effect(call) and not self._lock_failed():
                self._verdict.broken_leases.append(
                    f"{self._id}, {call.kind} by {call.owner} at {call.over_at:.3f}, had it until {current.until:.3f}"
                )
            current.until = min(current.until, call.invoked_at)
        elif call.kind in _SETTLES:
            current.until = min(current.until, call.invoked_at)
        elif call.returned_at is not None and call.kind in ("renew", "beat"):
            until = call.invoked_at + self._timeout_s
            if call.over_at <= current.until:
                current.until = until
                self._cut(current)
            elif call.kind == "renew":
                spans.append(
                    self._cut(_Span(call.owner, current.file, current.begun_at, call.over_at, until, lapsed=True))
                )

    def _took_effect(self, call: Call) -> bool:
        """Whether the ref went where the call was to send it, and the caller's own answer came too late to tell."""
        ended = call.kind == "ack" or call.final
        # What was given back may be leased next, or ended by the late ack of an earlier lease in this life.
        shows = ("arrived",) if ended else ("get", "arrived")
        return any(other.overlaps(call) and other.kind in shows for other in self._calls if other.owner != call.owner)

    def _cut(self, span: _Span) -> _Span:
        """End a span where somebody who is entitled to may have taken the lease away."""
        for call in self._cuts:
            if call.owner != span.owner and call.invoked_at < span.until and call.over_at >= span.begun_at:
                span.until = max(span.since, call.invoked_at)
        died_at = self._deaths.get(span.owner, inf)
        span.until = min(span.until, died_at)
        return span

    def _check_double(self, spans: list[_Span]) -> None:
        spans = sorted((span for span in spans if span.until > span.since), key=lambda span: span.since)
        for index, second in enumerate(spans):
            for first in spans[:index]:
                same_file = first.file is None or second.file is None or first.file == second.file
                if first.owner == second.owner or first.until - self._grain_s <= second.since:
                    continue
                if same_file or not self._lock_failed():
                    self._verdict.double_leases.append(
                        f"{self._id}, by {first.owner} until {first.until:.3f} and by {second.owner} from "
                        f"{second.since:.3f}{'' if same_file else ', as two files'}"
                    )

    def _check_again(self, spans: list[_Span]) -> None:
        for earlier, get in zip(self._gets, self._gets[1:], strict=False):
            if self._was_given_back(earlier, get):
                continue
            before = [span for span in spans if span.since <= earlier.over_at]
            if all(span.until - self._grain_s <= get.over_at for span in before):
                self._verdict.again["expired lease"] += 1
            elif self._lock_failed():
                self._verdict.again["lock did not exclude"] += 1
            else:
                self._verdict.unexplained.append(
                    f"{self._id}, delivered to {earlier.owner} at {earlier.over_at:.3f} and to {get.owner} at "
                    f"{get.over_at:.3f}"
                )

    def _was_given_back(self, earlier: Call, get: Call) -> bool:
        """Whether a call in between may have put the ref back into pending/, or a new one in its place."""
        since = min(earlier.invoked_at, get.invoked_at)
        between = [c for c in self._calls if c.invoked_at <= get.over_at and c.over_at >= since]
        if any(call.kind in _GIVES_BACK and not call.final for call in between):
            return True
        ended = any(call.kind in _ENDS_LIFE for call in between)
        return ended and any(call.kind == "put" for call in between)

    def _lock_failed(self) -> bool:
        """Whether two calls that queue this id may have been in the lock at once, or a put may have missed another."""
        if not self._deduplicates and len(self._puts) > 1:
            return True
        if self._overlaps is not None and not self._overlaps:
            return False
        queueing = [call for call in self._calls if call.kind in _QUEUES]
        for index, one in enumerate(queueing):
            for other in queueing[:index]:
                if one.overlaps(other) and (
                    self._overlaps is None or any(o.overlaps(one) and o.overlaps(other) for o in self._overlaps)
                ):
                    return True
        return False
