"""Write a report as one HTML page that needs nothing else: no network, no script, and it prints well.

Everything that comes from the queue is escaped: ids, reasons, names of owners, hosts and members are anybody's text.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from itertools import pairwise

from fsqueue import __version__
from fsqueue.cli.charts import Series, share, timeline
from fsqueue.cli.output import age, count, shown
from fsqueue.cli.status import MEMBERS, OWNERS, Columns, T, joined_text, paused_text, quantum_text
from fsqueue.operate.report import AGES, DeadReason, Report, Spread
from fsqueue.operate.report.told import BOUNDS_S

_MOST_ROWS = 200
_WORD = 24
_STYLE = """
:root { color-scheme: light; --ink: #1b1f24; --soft: #59636e; --line: #d1d9e0; --done: #2563a8; --dead: #b3261e;
  --ended: #c77d0a; }
* { box-sizing: border-box; }
body { margin: 2rem auto; max-width: 62rem; padding: 0 1rem; background: #fff; color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--line); padding-bottom: .2rem; }
p, figcaption { color: var(--soft); margin: .3rem 0; }
.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: .8rem; margin: 1.2rem 0; }
.tile { border: 1px solid var(--line); border-radius: 6px; padding: .6rem .8rem; }
.tile b { display: block; font-size: 1.7rem; font-variant-numeric: tabular-nums; line-height: 1.2; }
.tile small { color: var(--soft); display: block; overflow-wrap: anywhere; }
.tile.failed b.some { color: var(--dead); }
figure { margin: .6rem 0 1.2rem; }
svg.chart { width: 100%; height: auto; display: block; }
svg text { font: 11px system-ui, "DejaVu Sans", sans-serif; fill: var(--soft); }
svg text.y { text-anchor: end; }
svg .grid { stroke: var(--line); stroke-width: 1; }
rect.done { fill: var(--done); } rect.dead { fill: var(--dead); } rect.ended { fill: var(--ended); }
.key.done { background: var(--done); } .key.dead { background: var(--dead); } .key.ended { background: var(--ended); }
.key { display: inline-block; width: .8em; height: .8em; margin: 0 .35em 0 0; border-radius: 2px; }
.share { width: 10rem; height: .6rem; display: block; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th { text-align: left; color: var(--soft); font-weight: 600; white-space: nowrap; }
th, td { padding: .25rem 1rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.long { overflow-wrap: anywhere; }
td.number, th.number { text-align: right; padding-right: 1.6rem; font-variant-numeric: tabular-nums;
  white-space: nowrap; }
footer { margin: 2.5rem 0 1rem; color: var(--soft); font-size: .85rem; }
* { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
@media screen and (max-width: 46rem) { .tiles { grid-template-columns: repeat(2, 1fr); }
  .wide { overflow-x: auto; } .wide > table, .wide > svg { min-width: 44rem; } }
@media print { body { margin: 0; max-width: none; font-size: 10pt; } @page { margin: 15mm; }
  figure, tr, .tile { break-inside: avoid; } h2 { break-after: avoid; } }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(report: Report) -> str:
    """Return the whole page."""
    parts = [*_head(report), *_tiles(report), *_over_time(report), *_ages(report), *_dead(report)]
    parts += [*_owners(report), *_members(report), *_foot(report)]
    return "\n".join(parts) + "\n"


def _head(report: Report) -> Iterator[str]:
    seen = report.status
    timeout = "leases never time out" if seen.lease_timeout_s is None else f"lease timeout {age(seen.lease_timeout_s)}"
    run = [f"run {shown(seen.run_id)}"] if seen.run_id else []
    zone = time.strftime("%Z", time.localtime(seen.at))
    yield '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
    yield f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{_text(seen.queue)}: a report</title>\n<style>{_STYLE}</style>\n</head>\n<body>"
    yield f"<h1>{_text(seen.queue)}</h1>"
    made = f"made {_date(report.created_at)}"
    paused = [paused_text(seen)] if seen.paused else []
    facts = [f"as of {_date(seen.at)} {zone}", *paused, *run, made, timeout, f"lock {seen.lock}"]
    yield f"<p>{escape(', '.join(facts))}</p>"


def _tiles(report: Report) -> Iterator[str]:
    seen = report.status
    notes = {
        "pending": f"the next one waits for {age(seen.oldest_pending_age_s)}" if seen.oldest_pending_id else "",
        "leased": _leased(report),
        "done": _steps(report),
        "failed": f"for {count(len(report.dead), 'reason')}" if report.dead else "",
    }
    yield '<div class="tiles">'
    for state, number in seen.counts._asdict().items():
        some = ' class="some"' if number else ""
        note = f"<small>{_text(notes[state])}</small>" if notes[state] else ""
        yield f'<div class="tile {state}">{state}<b{some}>{number:,}</b>{note}</div>'
    yield "</div>"


def _leased(report: Report) -> str:
    seen = report.status
    oldest = [f"the oldest for {age(seen.oldest_lease_age_s)}"] if seen.oldest_lease_age_s is not None else []
    delayed = [f"{seen.delayed:,} of them wait to be tried again"] if seen.delayed else []
    return ", ".join([*oldest, *delayed])


def _steps(report: Report) -> str:
    steps = report.steps
    if steps is None:
        return ""
    without = f"; {steps.without:,} without a step" if steps.without else ""
    return f"steps {steps.first:,} to {steps.last:,}, {steps.refs / steps.different:,.1f} refs each{without}"


def _over_time(report: Report) -> Iterator[str]:
    yield "<h2>Over the run</h2>"
    line = report.timeline
    if line is None:
        yield "<p>Nothing is done yet, and nothing went wrong.</p>"
        return
    series = [Series("done", "done", line.done), Series("dead letters", "dead", line.dead)]
    drawn = timeline("Refs done", series, line.begins_at, line.width_s)
    yield f'<figure><div class="wide">{drawn}</div>'
    yield (
        '<figcaption><span class="key done"></span>done, by when they were leased or renewed last; '
        '<span class="key dead"></span>dead letters. '
        f"{_rates(line.done, line.width_s)} A bar is {_long(line.width_s)}.</figcaption></figure>"
    )
    if any(line.ended):
        series = [Series("leases ended", "ended", line.ended)]
        drawn = timeline("Leases that ended otherwise", series, line.begins_at, line.width_s)
        yield f'<figure><div class="wide">{drawn}</div>'
        told = ", ".join(f"{number:,} {event}" for event, number in report.events.items())
        yield (
            f'<figcaption><span class="key ended"></span>leases that ended without an acknowledgement. In the '
            f"histories of all refs: {escape(told)}. {count(report.retried, 'ref')} came again.</figcaption></figure>"
        )


def _rates(done: Sequence[int], width_s: float) -> str:
    total, busy = sum(done), [number for number, value in enumerate(done) if value]
    if not busy:
        return ""
    mean, most = total / ((busy[-1] - busy[0] + 1) * width_s), max(done) / width_s
    unit, size = next(((u, s) for u, s in (("s", 1), ("min", 60)) if mean * s >= 1), ("h", 3600))
    return f"{mean * size:,.1f} refs/{unit} on average from the first to the last, {most * size:,.1f} at most."


def _long(seconds: float) -> str:
    return age(seconds).replace(".0 ", " ")


def _ages(report: Report) -> Iterator[str]:
    if not report.ages:
        return
    yield "<h2>Ages</h2>"
    header = ("REFS", "WHAT", "MEDIAN", "90 % WITHIN", "LONGEST")
    rows = [
        (f"{spread.count:,} {state}", AGES[state], age(spread.median), age(spread.p90), age(spread.most))
        for state, spread in report.ages.items()
    ]
    yield from _table(header, rows, numbers=(2, 3, 4))
    for state, spread in report.ages.items():
        yield from _histogram(state, spread)


def _histogram(state: str, spread: Spread) -> Iterator[str]:
    bounds = list(map(_long, BOUNDS_S))
    names = [f"under {bounds[0]}", *(f"{a} to {b}" for a, b in pairwise(bounds))]
    names.append(f"from {bounds[-1]}")
    most = max(spread.within)
    used = [number for number, value in enumerate(spread.within) if value]
    if len(used) < 2:
        return
    yield f"<figure><figcaption>{state}: {AGES[state]}</figcaption><table>"
    for number in range(used[0], used[-1] + 1):
        value = spread.within[number]
        cells = f'<td style="width:9rem">{names[number]}</td><td style="width:11rem">{share(value / most)}</td>'
        yield f"<tr>{cells}<td>{value:,}</td></tr>"
    yield "</table></figure>"


def _dead(report: Report) -> Iterator[str]:
    if not report.dead and not report.unread:
        return
    yield "<h2>Dead letters</h2>"
    if report.unread:
        yield f"<p>{count(report.unread, 'file')} could not be read: see fsqueue check.</p>"
    header = ("REFS", "REASON", "FIRST", "LAST", "SUCH AS")
    yield from _table(header, map(_dead_row, report.dead), numbers=(0,), total=len(report.dead))


def _dead_row(dead: DeadReason) -> tuple[str, ...]:
    such_as = ", ".join(map(shown, dead.examples)) + (", ..." if dead.count > len(dead.examples) else "")
    return f"{dead.count:,}", shown(dead.reason), _date(dead.first_at), _date(dead.last_at), such_as


def _owners(report: Report) -> Iterator[str]:
    owners = sorted(report.status.owners, key=lambda owner: (-owner.leases, owner.owner))
    yield "<h2>Leases by owner</h2>"
    if not owners:
        yield "<p>Nobody has the queue open, and nobody leases a ref.</p>"
        return
    yield from _columns(OWNERS, owners, numbers=("PID", "LEASES"))


def _members(report: Report) -> Iterator[str]:
    stream = report.status.stream
    if stream is None or not stream.members:
        return
    yield "<h2>Members of the stream</h2>"
    quantum = f"; {quantum_text(stream.quantum)}" if stream.quantum else ""
    yield f"<p>{_text(joined_text(stream) + quantum)}</p>"
    yield from _columns(MEMBERS, stream.members, numbers=("PID",))


def _foot(report: Report) -> Iterator[str]:
    yield (
        f"<footer>fsqueue report, fsqueue {escape(__version__)}, from the queue's files alone: what was purged is not "
        "in it. Times are of the clock that stamps these files.</footer>\n</body>\n</html>"
    )


def _columns(columns: Columns[T], rows: Sequence[T], numbers: tuple[str, ...]) -> Iterator[str]:
    header = list(columns)
    cells = (tuple(cell(row) for cell in columns.values()) for row in rows)
    yield from _table(header, cells, tuple(header.index(name) for name in numbers), len(rows))


def _table(
    header: Sequence[str], rows: Iterable[Sequence[str]], numbers: tuple[int, ...] = (), total: int = 0
) -> Iterator[str]:
    """Write a table; of many rows, the first ones."""

    def style(column: int, cell: str) -> str:
        name = "number" if column in numbers else "long" if len(cell) > _WORD else ""
        return f' class="{name}"' if name else ""

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(f"<{tag}{style(column, cell)}>{_text(cell)}</{tag}>" for column, cell in enumerate(row))

    yield f'<div class="wide"><table><thead><tr>{cells("th", header)}</tr></thead><tbody>'
    for number, row in enumerate(rows):
        if number == _MOST_ROWS:
            yield f'<tr><td colspan="{len(header)}">and {total - _MOST_ROWS:,} more</td></tr>'
            break
        yield f"<tr>{cells('td', row)}</tr>"
    yield "</tbody></table></div>"


def _text(text: str) -> str:
    """Escape anybody's text; what cannot be printed is spelt out."""
    return escape(text if text.isprintable() else shown(text))


def _date(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
