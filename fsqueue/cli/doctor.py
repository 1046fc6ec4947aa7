"""`fsqueue doctor`: tell what the mount under a directory can do, as text or JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click

from fsqueue.cli.arguments import as_json
from fsqueue.cli.ending import sigterm_as_exit
from fsqueue.cli.output import data, one_json
from fsqueue.errors import QueueIOError
from fsqueue.operate.doctor.diagnosis import diagnose
from fsqueue.operate.doctor.findings import Diagnosis
from fsqueue.operate.doctor.races import LockFindings, RaceFindings

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


@click.command(epilog="Example:  fsqueue doctor /mnt/shared/queues --json | jq .advice")
@click.argument(
    "directory", metavar="[DIR]", envvar="FSQUEUE_DIR", default=".", type=click.Path(exists=True, file_okay=False)
)
@as_json
def doctor(directory: str, as_json: bool) -> None:
    """Find out what the filesystem under DIR can do for a queue, and what settings suit it.

    DIR may be a queue or any directory; without it, $FSQUEUE_DIR or the current directory. Everything happens in a
    fresh subdirectory of DIR, which is removed. Exits with 1 where a promise of the queue cannot be kept there.
    """
    try:
        with sigterm_as_exit():
            found = diagnose(directory, progress=_progress)
    except QueueIOError as error:
        raise click.ClickException(str(error)) from None
    finally:
        _progress("")
    if as_json:
        one_json(found.as_json())
    else:
        data("\n".join(_lines(found)))
    sys.exit(0 if found.fit else 1)


def _lines(found: Diagnosis) -> Iterator[str]:
    mount = found.mount
    where = f"{mount.type} ({mount.source} on {mount.point})" if mount else "an unknown filesystem"
    yield f"{found.directory} is on {where}"
    yield f"  {','.join(mount.options)}" if mount else "  no /proc/self/mountinfo here"
    for note in found.mount_notes:
        yield f"  {'!' if note.level == 'warning' else ' '} {note.option}: {note.text}"
    yield from _section("what it can do", _abilities(found))
    yield from _section("clock and timestamps", _times(found))
    yield from _section(f"{'cost of an operation, µs':<38}{'median':>10}{'p99':>10}", _costs(found))
    yield from _section("advice", _advice(found))
    if found.fit:
        yield "\nfit: a queue's promises can be kept here"
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


def _progress(what: str) -> None:
    """Show what is being tried, on one line of stderr, where that is a terminal."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{what}" + (" ..." if what else ""))
        sys.stderr.flush()
