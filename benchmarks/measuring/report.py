"""From raw durations to rows, ratios, targets, and the text that is printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any, NamedTuple

from measuring.measure import Case, Findings, Options
from measuring.tables import quantile, table
from measuring.worker import Slice
from subjects.kinds import SUBJECTS

STEPS = ("put", "get", "ack")
Row = dict[str, Any]
_REFERENCES = {"x_file": "file", "x_floor": "floor", "x_sqlite": "sqlite", "x_sqlite_tuned": "sqlite-tuned"}
_COLUMNS = {"x_floor": "x floor", "x_sqlite": "x plain", "x_sqlite_tuned": "x tuned"}


class Series(NamedTuple):
    """What charts are drawn from.

    Attributes:
        gets: the durations of all get calls, seconds in ascending order, by kind, backlog, batch and processes.
        labels: names by kind.
    """

    rows: Sequence[Row]
    gets: Mapping[tuple[str, int, int, int], Sequence[float]]
    labels: Mapping[str, str]


def rows(findings: Findings) -> list[Row]:
    """One row a case: refs/s (median over rounds), call latencies in µs (over all calls), and ratios."""
    rates = {case: [_cycle_rate(found) for found in rounds] for case, rounds in findings.slices.items()}
    result = []
    for case, rounds in findings.slices.items():
        row: Row = {**asdict(case), "refs_per_s": median(rates[case])}
        for step in STEPS:
            row[f"{step}_refs_per_s"] = median(_rate(found, (step,)) for found in rounds)
            calls = sorted(duration for found in rounds for part in found for duration in getattr(part, f"{step}_s"))
            row[f"{step}_median_us"] = median(calls) * 1e6
            row[f"{step}_p99_us"] = quantile(calls, 0.99) * 1e6
        for column, other in _REFERENCES.items():
            against = rates.get(Case(other, case.backlog, case.batch, case.processes), [])
            row[column] = _ratio(rates[case], against)
        result.append(row)
    return result


def series(found: Sequence[Row], findings: Findings, labels: Mapping[str, str] = SUBJECTS) -> Series:
    gets = {
        (case.kind, case.backlog, case.batch, case.processes): sorted(
            duration for processes in rounds for part in processes for duration in part.get_s
        )
        for case, rounds in findings.slices.items()
    }
    return Series(found, gets, labels)


def verdict_rows(findings: Findings) -> list[Row]:
    return [{**asdict(verdict), "clean": verdict.clean} for verdict in findings.verdicts]


def _rate(found: list[Slice], steps: tuple[str, ...]) -> float:
    """Refs a second of processes side by side: the sum of each one's refs over the time its calls took."""
    return sum(part.refs_got / sum(sum(getattr(part, f"{step}_s")) for step in steps) for part in found)


def _cycle_rate(found: list[Slice]) -> float:
    return _rate(found, STEPS)


def _ratio(ours: list[float], theirs: list[float]) -> float | None:
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=False) if b]
    return median(a / b for a, b in pairs) if pairs else None


def wakeup_rows(findings: Findings) -> list[Row]:
    return [
        {
            "kind": kind,
            "samples": len(delays),
            "median_ms": median(delays) * 1e3,
            "p99_ms": quantile(delays, 0.99) * 1e3,
        }
        for kind, delays in findings.wakeups_s.items()
    ]


def targets(options: Options, filesystem: str | None, found: list[Row], wakeups: list[Row]) -> list[Row]:
    """What the queue should reach in one process, and whether this run's ratios do.

    Against SQLite, the targets are meant for a tmpfs without durability and for a disk with it; elsewhere they are
    not judged.
    """
    ours = {(row["backlog"], row["batch"]): row for row in found if (row["kind"], row["processes"]) == ("file", 1)}
    on_tmpfs = filesystem == "tmpfs"
    result: list[Row] = []
    for (backlog, batch), row in ours.items():
        share = 0.25 if batch == 1 else 0.5 if on_tmpfs else 0.8
        if batch in (1, 64):
            result.append(_target(f"share of the floor, batch {batch}, backlog {backlog}", row["x_floor"], share))
    deep, shallow = (ours.get((backlog, 64)) for backlog in (100_000, 1_000))
    if deep and shallow:
        growth = deep["get_median_us"] / shallow["get_median_us"]
        result.append(_target("median get, batch 64, backlog 100000 over 1000", growth, 1.5, at_most=True))
    if on_tmpfs is not options.durable:
        for backlog, factor in ((5_000, 2.5), (20_000, 4.0)) if on_tmpfs else ((b, 1.5) for b in options.backlogs):
            if (backlog, 64) in ours:
                name = f"times plain SQLite, batch 64, backlog {backlog}"
                result.append(_target(name, ours[backlog, 64]["x_sqlite"], factor))
    for row in wakeups:
        if row["kind"] == "file":
            result.append(_target("median wake-up over 3 ms", row["median_ms"] / 3.0, 1.0, at_most=True))
    return result


def _target(name: str, value: float, bound: float, at_most: bool = False) -> Row:
    met = value <= bound if at_most else value >= bound
    return {"target": name, "value": value, "bound": bound, "at_most": at_most, "met": met}


def text(found: list[Row], wakeups: list[Row], judged: list[Row], findings: Findings) -> str:
    """Everything that is printed after the environment line."""
    parts = ["refs/s as median of rounds; µs a call as median/p99", throughput(found, SUBJECTS, _COLUMNS)]
    wakeup_lines = [
        [SUBJECTS[r["kind"]], f"{r['median_ms']:.2f}", f"{r['p99_ms']:.2f}", f"{r['samples']}"] for r in wakeups
    ]
    parts.append("wake-up: from before the put in one process to after the waiting get in another, a put every 20 ms")
    parts.append(table(["implementation", "median ms", "p99 ms", "refs"], wakeup_lines))
    parts.append(_targets_text(judged))
    parts.append(_verdict_text(findings))
    return "\n\n".join(parts)


def throughput(found: Sequence[Row], labels: Mapping[str, str], ratios: Mapping[str, str]) -> str:
    """A table for each number of processes.

    Args:
        ratios: the columns of ratios, key to heading.
    """
    header = ["implementation", "backlog", "batch", "refs/s", "put/s", "get/s", "ack/s", "put µs", "get µs", "ack µs"]
    parts = []
    for processes in sorted({row["processes"] for row in found}):
        chosen = [row for row in found if row["processes"] == processes]
        chosen.sort(key=lambda row: (row["batch"], row["backlog"], list(labels).index(row["kind"])))
        lines = [_line(row, labels[row["kind"]], ratios) for row in chosen]
        parts.append(f"processes: {processes}\n\n{table([*header, *ratios.values()], lines)}")
    return "\n\n".join(parts)


def _line(row: Row, label: str, ratios: Mapping[str, str]) -> list[str]:
    line = [label, f"{row['backlog']}", f"{row['batch']}", f"{row['refs_per_s']:,.0f}"]
    line += [f"{row[f'{step}_refs_per_s']:,.0f}" for step in STEPS]
    line += [f"{row[f'{step}_median_us']:,.0f}/{row[f'{step}_p99_us']:,.0f}" for step in STEPS]
    return line + ["-" if row[column] is None else f"{row[column]:.2f}" for column in ratios]


def _targets_text(judged: list[Row]) -> str:
    lines = [
        [row["target"], f"{row['value']:.2f}", f"{'<=' if row['at_most'] else '>='} {row['bound']:g}",
         "met" if row["met"] else "NOT MET"]
        for row in judged
    ]  # fmt: skip
    return table(["target, one process", "ratio", "bound", ""], lines)


def _verdict_text(findings: Findings) -> str:
    put, delivered = (sum(getattr(v, key) for v in findings.verdicts) for key in ("put", "delivered"))
    bad = [v for v in findings.verdicts if not v.clean]
    lines = [f"checked: {put:,} refs put, {delivered:,} delivered, {'nothing' if not bad else 'SOME'} lost or doubled"]
    for v in bad:
        lines.append(f"  {SUBJECTS[v.kind]}, backlog {v.backlog}: {v.lost} lost, {v.doubled} doubled, {v.left} left")
    return "\n".join(lines)
