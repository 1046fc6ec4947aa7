"""What a soak has done and found: its progress, its figures, its problems, and the judgement at the end."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

from fsqueue import FileSampleRefQueue
from fsqueue.format import names
from fsqueue.operate.check import check_queue, repair
from history.checker import Verdict
from soaking.crew import Tally
from soaking.merging import dead_letters, errors_of, merged, vanished, verdict_of
from soaking.site import Settings, Site

_LEGAL_NOTES = ("owner-gone", "leftover", "order")
_SHOWN = 20
_FULL = 28  # ENOSPC


class Report:
    """Collects what happened.

    Attributes:
        counts: how often what was done, on this node.
        problems: what must not be; one line each.
    """

    def __init__(self, site: Site, settings: Settings, about: dict[str, Any]) -> None:
        self.counts: dict[str, Any] = {}
        self.problems: list[str] = []
        self._site = site
        self._settings = settings
        self._queue = site.queue_of(settings)
        self._about = about
        self._verdict = Verdict()
        self._returned = 0
        self._cut_short: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._notes: Counter[str] = Counter()
        self._vanished = self._unmended = 0
        self._left: dict[str, int] = {}

    def problem(self, text: str) -> None:
        self.problems.append(text)

    def progress(self, left_s: float, tally: Tally, chaos: Counter[str]) -> None:
        """One line to stderr."""
        with FileSampleRefQueue[Any](self._queue, durable=False) as queue:
            counts = queue.counts()
        states = ", ".join(f"{state} {count}" for state, count in counts._asdict().items())
        done = f"kills {tally.kills}, stops {tally.stops}, moves {_sum(chaos, 'moved')}"
        print(f"soak: {left_s:5.0f} s left; {done}; {states}", file=sys.stderr, flush=True)

    def note(self, tally: dict[str, Any], chaos: Counter[str]) -> None:
        """What this node's crew and chaos have done."""
        crashes = tally.pop("crashes")
        self.problems += [f"crash: {crash}" for crash in crashes]
        self.counts = {**tally, **dict(sorted(chaos.items()))}

    def judge(self) -> None:
        """Check the history, what was raised, the dead letters, and the queue itself; nobody may use it any more."""
        history = merged(self._site, self._queue)
        self._returned, self._cut_short = history.returned, history.cut_short
        self._verdict = verdict_of(history.calls, self._settings.lease_timeout_s)
        self.problems += self._verdict.problems()
        self._vanished = len(gone := vanished(history.calls))
        self.problems += [f"vanished: {sample_id} was put, and never settled" for sample_id in gone]
        for error in errors_of(self._site):
            kind = "disk full" if error["errno"] == _FULL else error["error"]
            self._errors[kind] += 1
            if error["errno"] != _FULL or not self.counts.get("disk filled"):
                self.problem(f"raised: {error['who']} at {error['at']:.3f}: {error['error']}: {error['text']}")
        for sample_id, reason in dead_letters(self._queue).items():
            if reason is not None and "soak: " not in reason and ", the last one: " not in reason:
                self.problem(f"buried: {sample_id}: {reason}")
        self._judge_files()

    def _judge_files(self) -> None:
        """`fsqueue check`: after the drain only what the dead leave behind is allowed, and repair removes it."""
        for violation in check_queue(self._queue, notes=True):
            self._notes[violation.kind] += 1
            if violation.kind not in _LEGAL_NOTES:
                self.problem(f"damage: {violation.path}: {violation.problem}")
        self._left = {state: len(list((self._queue / state).iterdir())) for state in ("pending", "leased", "tmp")}
        for state in ("pending", "leased"):
            left = [path.name for path in (self._queue / state).iterdir() if names.parse_pending(path.name)]
            self.problems += [f"stranded: {state}/{name}" for name in left]
        repair(self._queue)
        unmended = [f"damage after repair: {v.path}: {v.problem}" for v in check_queue(self._queue, notes=True)]
        self._unmended = len(unmended)
        self.problems += unmended

    def doings(self) -> str:
        return ", ".join(f"{what} {count}" for what, count in self.counts.items())

    def facts(self) -> dict[str, Any]:
        """Everything, for a file."""
        others = {node: facts.get("doings") for node, facts in self._site.nodes().items() if node != self._site.node}
        verdict = vars(self._verdict)
        return {
            **self._about,
            "done": self.counts,
            "killed_in_the_middle_of": dict(self._cut_short),
            "returned": self._returned,
            "other_nodes": others,
            "verdict": {name: len(value) if isinstance(value, list) else value for name, value in verdict.items()},
            "vanished": self._vanished,
            "errors": dict(self._errors),
            "check": {"notes": dict(self._notes), "unmended": self._unmended, "left": self._left},
            "problems": self.problems,
        }

    def text(self) -> str:
        """What is printed at the end."""
        verdict = self._verdict
        causes = ", ".join(f"{cause} {count}" for cause, count in sorted(verdict.again.items())) or "none"
        lines = [
            f"done: {self.doings()}",
            *(f"on {node}: {doings}" for node, doings in self.facts()["other_nodes"].items()),
            f"killed in the middle of: {_listed(self._cut_short)}",
            f"refs: put {self._returned} (and {verdict.puts - self._returned} by calls that did not return), "
            f"delivered {verdict.deliveries}, acked {verdict.acked}, recovered {verdict.recovered}",
            f"duplicates: {verdict.again.total()} (causes: {causes})",
            f"raised: {_listed(self._errors)}",
            f"check: {_listed(self._notes)}; after repair: {self._unmended or 'clean'}; "
            f"files of the dead in tmp/: {self._left.get('tmp')}",
            f"lost {len(verdict.lost)}, vanished {self._vanished}, unexpected {len(verdict.unexpected)}, leased twice "
            f"{len(verdict.double_leases)}, leases broken {len(verdict.broken_leases)}, unexplained "
            f"{len(verdict.unexplained)}; problems in all: {len(self.problems)}",
            *(f"  {problem}" for problem in self.problems[:_SHOWN]),
        ]
        return "\n".join(lines)


def _sum(counts: Counter[str], beginning: str) -> int:
    return sum(count for what, count in counts.items() if what.startswith(beginning))


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{what} {count}" for what, count in sorted(counts.items())) or "nothing"
