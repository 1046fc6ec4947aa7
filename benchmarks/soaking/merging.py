"""From the logs of all processes and nodes to one history, and what the checker says of it."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

from fsqueue.format import names
from history.checker import Verdict, check
from history.recording import OVERLAP, Call, read
from soaking.chaos import CHAOS
from soaking.crew import DEATHS, ERRORS
from soaking.site import Site, lines_of

GRAIN_S = 0.02
OBSERVER = "observer"
_AGES_S = 1e9


@dataclass
class History:
    """The calls of all nodes.

    Attributes:
        cut_short: by kind, the calls in the middle of which a process was killed.
        returned: how many refs were put by calls that returned.
    """

    calls: list[Call]
    cut_short: Counter[str]
    returned: int


def merged(site: Site, queue: Path) -> History:
    """All calls, and where the dead letters have ended. To be called when all processes are gone."""
    calls: list[Call] = []
    cut_short: Counter[str] = Counter()
    nodes = site.nodes()
    for node, facts in nodes.items():
        unsure_s = float(facts["unsure_s"]) if len(nodes) > 1 else 0.0
        for call in _calls_of_node(site.directory / "logs" / node, cut_short):
            calls.append(_widened(call, unsure_s))
    calls = list(_with_overlaps(calls))
    end = max((call.over_at for call in calls), default=0.0)
    calls += [Call("arrived", OBSERVER, (sample_id,), end, end, end) for sample_id in dead_letters(queue)]
    calls += list(ends_without_witness(calls))
    returned = sum(len(call.ids) for call in calls if call.kind == "put" and call.returned_at is not None)
    return History(calls, cut_short, returned)


def verdict_of(calls: list[Call], lease_timeout_s: float) -> Verdict:
    return check(calls, lease_timeout_s, grain_s=GRAIN_S)


def vanished(calls: list[Call]) -> list[str]:
    """Ids that were put, but that nobody has tried to settle, though the queue was drained.

    Stronger than "lost", which a single delivery rules out: a ref that was given back must not vanish either.
    """
    settled = {i for call in calls if call.kind in ("ack", "arrived") or call.final for i in call.ids}
    put = {i for call in calls if call.kind == "put" and call.returned_at is not None for i in call.ids}
    return sorted(put - settled)


def errors_of(site: Site) -> list[dict[str, Any]]:
    """What workers have raised, on all nodes."""
    return [line for node in site.nodes() for line in lines_of(site.directory / "logs" / node / ERRORS)]


def dead_letters(queue: Path) -> dict[str, str | None]:
    """The ids in failed/, each with the reason."""
    found: dict[str, str | None] = {}
    for name in os.listdir(queue / "failed"):
        stem = names.parse_ref(name) or name
        try:
            fields = json.loads((queue / "failed" / name).read_bytes())
        except ValueError:
            found[stem] = "the file is no JSON"
            continue
        found[fields.get("sample_id", stem)] = fields.get("_fsqueue", {}).get("reason")
    return found


def _calls_of_node(logs: Path, cut_short: Counter[str]) -> Iterable[Call]:
    deaths = {line["log"]: line for line in lines_of(logs / DEATHS)}
    for path in sorted(logs.glob("*.jsonl")):
        if path.name in (DEATHS, ERRORS):
            continue
        calls = [replace(call, ids=tuple(map(sys.intern, call.ids))) for call in read(path)]
        cut_short.update(call.kind for call in calls if call.over_at == inf)
        yield from calls if path.name == CHAOS else calls_of_process(calls, deaths.get(path.name))


def calls_of_process(calls: list[Call], death: dict[str, Any] | None) -> Iterable[Call]:
    """What was open when a process ended is over since it was reaped; all its handles died with it.

    Where nobody says that it was reaped, since its whole node is gone, nothing is known of its end.
    """
    if death is None:
        yield from calls
        return
    left_at = [call.invoked_at for call in calls if call.kind == "died"]
    died_at = min([*left_at, death["killed_at"] or death["reaped_at"]])
    owners = dict.fromkeys(call.owner for call in calls if call.kind != "died")
    for call in calls:
        if call.kind != "died":
            yield replace(call, over_at=death["reaped_at"]) if call.over_at == inf else call
    for owner in owners:
        yield Call("died", owner, (), died_at, died_at, died_at)


def _widened(call: Call, by_s: float) -> Call:
    """A call of a host whose clock is known only so well: it may have begun earlier, and ended later."""
    if not by_s:
        return call
    returned_at = None if call.returned_at is None else call.returned_at + by_s
    return replace(call, invoked_at=call.invoked_at - by_s, returned_at=returned_at, over_at=call.over_at + by_s)


def _with_overlaps(calls: list[Call]) -> Iterable[Call]:
    """While a put that saw the lock file's deletion is under way, two may hold the lock."""
    deletions = [call for call in calls if call.kind == OVERLAP]
    puts = sorted((call for call in calls if call.kind == "put"), key=lambda call: call.invoked_at)
    yield from (call for call in calls if call.kind != OVERLAP)
    for deletion in deletions:
        yield replace(deletion, over_at=max([deletion.over_at, *(p.over_at for p in puts if p.overlaps(deletion))]))


def ends_without_witness(calls: list[Call]) -> Iterable[Call]:
    """Acks that did happen, though they do not say so, since the queue was drained and nothing was seen of the ref
    afterwards: a process was killed or met an error in the middle; the lease was lost and the ref back in pending/,
    from where an ack takes it to done/ all the same; or the successor of a dead consumer acked by id."""
    seen_at: dict[str, float] = defaultdict(lambda: -_AGES_S)
    for call in calls:
        if call.kind in ("get", "arrived"):
            for sample_id in call.ids:
                seen_at[sample_id] = max(seen_at[sample_id], call.over_at)
    for call in calls:
        for sample_id in call.ids if call.kind == "ack" or call.final else ():
            if seen_at[sample_id] < call.invoked_at:
                yield Call("arrived", OBSERVER, (sample_id,), call.over_at, call.over_at, call.over_at)
