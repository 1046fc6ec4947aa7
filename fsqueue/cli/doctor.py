"""`fsqueue doctor`: tell what the mount under a directory can do, as text or JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import click

from fsqueue.cli.arguments import as_json
from fsqueue.cli.ending import sigterm_as_exit
from fsqueue.cli.output import data, one_json
from fsqueue.cli.working import Working, quiet, working
from fsqueue.errors import QueueIOError
from fsqueue.operate.doctor.diagnosis import STEPS, diagnose
from fsqueue.operate.doctor.findings import Diagnosis
from fsqueue.operate.doctor.peer import PeerError
from fsqueue.operate.doctor.races import LockFindings, RaceFindings
from fsqueue.operate.doctor.sides.verdict import Verdict
from fsqueue.operate.doctor.sides.verify import CHECKS, Report, verify

OPERATIONS = {
    "create_write_close": "create + write 600 B + close",
    "fsync": "fsync of a written file",
    "fsync_directory": "fsync of a directory",
    "rename": "rename between directories",
    "utime": "utime (stamp)",
    "unlink": "unlink",
    "stat": "stat",
    "open_read_close": "open + read + close",
    "listdir": "listdir of 100 files",
    "lock_unlock": "lock + unlock",
}
_STAMPED_BY = {
    "this_host": "by this host's clock",
    "another_clock": "by another clock than this host's",
    "undecided": "by the server's or this host's clock, which agree",
}


_MARKS = {"holds": "holds", "lives with it": "lives", "weaker": "WEAKER", "broken": "BROKEN", "measured": ""}


def _chosen(context: click.Context, option: click.Parameter, text: str | None) -> list[str] | None:
    if text is None:
        return None
    chosen = [name.strip() for name in text.split(",")]
    if unknown := sorted(set(chosen) - set(CHECKS)):
        raise click.BadParameter(f"{', '.join(unknown)} is none of {', '.join(CHECKS)}")
    return [name for name in CHECKS if name in chosen]


@click.command(epilog="Example:  fsqueue doctor /mnt/shared/queues --peer 'ssh node2'")
@click.argument(
    "directory", metavar="[DIR]", envvar="FSQUEUE_DIR", default=".", type=click.Path(exists=True, file_okay=False)
)
@click.option(
    "--peer",
    metavar="COMMAND",
    help="Try two nodes: COMMAND runs a shell command on the other one, as 'ssh node2' does.",
)
@click.option("--peer-python", metavar="PYTHON", help="The Python there that has fsqueue; default: as here.")
@click.option(
    "--second-mount",
    metavar="DIR2",
    help="Try two mounts: DIR2 is DIR through the other one; with --peer, as seen there.",
)
@click.option(
    "--only", metavar="CHECKS", callback=_chosen, help=f"Some of the checks of two sides: {', '.join(CHECKS)}."
)
@quiet
@as_json
def doctor(
    directory: str,
    peer: str | None,
    peer_python: str | None,
    second_mount: str | None,
    only: list[str] | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Find out what the filesystem under DIR can do for a queue, and what settings suit it.

    DIR may be a queue or any directory; without it, $FSQUEUE_DIR or the current directory. Everything happens in a
    fresh subdirectory of DIR, which is removed.

    Alone, it takes well under a minute and tells what this mount does, and what each operation costs. What several
    mounts or nodes do to each other takes two of them: with --second-mount or --peer, a process on each side works on
    the same files and queues for some minutes, and each promise of the queue gets a verdict:

    \b
    holds    as promised
    lives    the filesystem does not do what was asked; the queue has its own way round, and no promise suffers
    WEAKER   nothing is lost; order, deduplication or the wake-up of a waiting get is not to be relied on
    BROKEN   refs may be lost, held by two, or stuck: keep no queue there

    Exits with 1 where a promise cannot be kept.
    """
    two_sides = bool(peer or second_mount)
    if not two_sides and (peer_python or only):
        raise click.UsageError("--peer-python and --only are about two sides: give --peer or --second-mount as well")
    report: Report | None = None
    try:
        with sigterm_as_exit(), working("starting", "step", quiet, _ended) as work:
            work.total = STEPS + (len(only or CHECKS) + 1 if two_sides else 0)
            found = diagnose(directory, progress=work.step)
            if not as_json:
                work.data("\n".join(_lines(found, two_sides)))
            if two_sides and found.fit:
                report = verify(
                    directory,
                    second_mount=second_mount,
                    peer=peer,
                    peer_python=peer_python,
                    checks=only or list(CHECKS),
                    progress=work.step,
                    said=_ignore if as_json else partial(_say, work),
                    met=_ignore if as_json else partial(_introduce, work),
                )
    except (QueueIOError, PeerError) as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        one_json({**found.as_json(), "two_sides": report.as_json() if report else None})
    elif report:
        data("\n" + _summary(report))
    sys.exit(0 if found.fit and (report is None or report.holds) else 1)


def _ignore(what: object) -> None:
    """Say nothing."""


def _ended(work: Working) -> str:
    return f"{work.text()} done, and nothing is left behind; run it again"


def _introduce(work: Working, sides: dict[str, dict[str, Any]]) -> None:
    """Print what the two sides are."""
    work.data("\nbetween two sides")
    for name, side in sides.items():
        where = f"{side['filesystem']} ({side['source']} on {side['mount_point']})"
        work.data(f"  {name}: {side['host']}, fsqueue {side['fsqueue']}, Python {side['python']}, {where}")


def _say(work: Working, verdict: Verdict) -> None:
    """Print one verdict as soon as it is known."""
    weaker = f" [{', '.join(verdict.weakens)}]" if verdict.weakens else ""
    work.data(f"  {_MARKS[verdict.judgement]:<7}{verdict.promise:<36}{verdict.text}{weaker}")


def _summary(report: Report) -> str:
    if not report.holds:
        broken = ", ".join(verdict.promise for verdict in report.verdicts if verdict.broken)
        return f"NOT FIT for a queue of two sides: {broken}"
    if report.weakens:
        return f"fit: nothing is lost between the two sides; weaker: {', '.join(report.weakens)}"
    return "fit: a queue's promises hold between the two sides"


def _lines(found: Diagnosis, two_sides: bool = False) -> Iterator[str]:
    mount = found.mount
    where = f"{mount.type} ({mount.source} on {mount.point})" if mount else "an unknown filesystem"
    yield f"{found.directory} is on {where}"
    yield f"  {','.join(mount.options)}" if mount else "  no /proc/self/mountinfo here"
    for note in found.mount_notes:
        yield f"  {'!' if note.level == 'warning' else ' '} {note.option}: {note.text}"
    if not found.examined:
        yield from _section("NOT FIT for a queue", [f"  {problem}" for problem in found.problems])
        return
    yield from _section("what it can do", _abilities(found))
    yield from _section("clock and timestamps", _times(found))
    yield from _section(f"{'cost of an operation, µs':<38}{'median':>10}{'p99':>10}", _costs(found))
    yield from _section("advice", _advice(found))
    if found.fit:
        yield (
            "\nfit so far: what follows takes two sides" if two_sides else "\nfit: a queue's promises can be kept here"
        )
    else:
        yield from _section("NOT FIT for a queue", [f"  {problem}" for problem in found.problems])


def _section(title: str, lines: Iterator[str] | list[str]) -> Iterator[str]:
    yield f"\n{title}"
    yield from lines


def _line(verdict: bool | None, what: str, details: str = "") -> str:
    mark = {True: "yes", False: "NO", None: "?"}[verdict]
    return f"  {mark:<4}{what:<32}{details}".rstrip()


def _abilities(found: Diagnosis) -> Iterator[str]:
    race, lock = found.rename_race, found.lock
    yield _line(race.decided if race else None, "a rename decides a race", _race(race))
    yield _line(lock.excludes if lock else None, "flock excludes", _lock(lock))
    yield _line(found.exclusive_create, "O_EXCL refuses an existing name", _race(found.create_race))
    yield _line(found.hard_links, "hard links", "" if found.hard_links else "not needed: a rename takes their place")
    if found.rename_times is not None:
        yield _line(found.rename_times.keeps_mtime, "a rename keeps mtime")
        yield _line(found.rename_times.updates_ctime, "a rename updates ctime")
    if found.names is not None:
        yield _line(not found.names.case_insensitive, "names differ by case")
        long_enough = found.names.longest_bytes >= found.names.needed_bytes
        needed = f"longest {found.names.longest_bytes} bytes, needed at most {found.names.needed_bytes}"
        yield _line(long_enough, "names are long enough", needed)


def _race(race: RaceFindings | None) -> str:
    if race is None:
        return "could not be tried"
    told = f"{race.processes} processes, {race.files} files: {race.one_winner} with one winner"
    wins = "/".join(map(str, race.wins))
    others = [
        (race.several_winners, "with several"),
        (race.unreported, "won but reported as failed"),
        (race.gone, "with none"),
    ]
    others += [(count, f"refused with {name}") for name, count in sorted(race.heard.items())]
    return ", ".join([f"{told} ({wins})", *(f"{count} {what}" for count, what in others if count)])


def _lock(lock: LockFindings | None) -> str:
    if lock is None:
        return "could not be tried"
    if not lock.supported:
        return f"not supported ({lock.error})"
    return (
        f"{lock.processes} processes, {lock.rounds} rounds: {lock.overlaps} overlaps, {lock.lost_updates} lost "
        f"updates, {lock.waits} waits"
    )


def _times(found: Diagnosis) -> Iterator[str]:
    if found.clock is not None:
        clock = found.clock
        yield f"  files are stamped      {_STAMPED_BY[clock.stamped_by]}"
        yield f"  its skew to this host  {_seconds(clock.skew_s)} ± {_seconds(clock.uncertainty_s)}"
        yield f"  touches going back     {clock.went_backwards} of {clock.reads}"
    if found.granularity is not None:
        for what, step_s in (("file", found.granularity.file_s), ("directory", found.granularity.directory_s)):
            yield f"  {what + ' mtime steps':<23}{'does not move' if step_s is None else _seconds(step_s) + ' or less'}"


def _seconds(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if abs(seconds) >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def _costs(found: Diagnosis) -> Iterator[str]:
    for key, label in OPERATIONS.items():
        if key in found.costs:
            yield f"  {label:<36}{found.costs[key].median_us:>10,.1f}{found.costs[key].p99_us:>10,.1f}"


def _advice(found: Diagnosis) -> Iterator[str]:
    advice = found.advice
    if advice is None:
        return
    yield (
        f"  FileSampleRefQueue(path, lease_timeout_s={advice.lease_timeout_s:g}, heartbeat_s={advice.heartbeat_s:g}, "
        f"poll_interval_s={advice.poll_interval_s:g}, lock={advice.lock!r}, durable={advice.durable})"
    )
    for remark in advice.remarks:
        yield f"  - {remark}"
