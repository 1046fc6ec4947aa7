"""Run the recipes under the schedulers that this host has, let happen what happens on a cluster, and account for all.

    python benchmarks/cluster.py                               # every event once
    python benchmarks/cluster.py --times 5 --side-by-side 3    # every event five times
    python benchmarks/cluster.py --events preemption ray       # those whose names hold one of these words

`.ci/cluster` installs what this needs, and calls it. Slurm runs with a configuration of its own on loopback, as root.
Exits with 0 when every run has ended by itself and each sample is exactly once in the final state.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from types import FrameType

from clustering.events import Event, Site, all_events, lacking
from clustering.run import Account, StoppedError, stopping
from measuring.environment import environment, one_line

_FIRST_AFTER = 8
_STEP_AFTER = 8


@dataclass
class Row:
    """Count how the runs of one event ended."""

    event: str
    times: int = 0
    samples: int = 0
    twice: int = 0
    missing: int = 0
    well: int = 0
    seconds: float = 0.0

    def add(self, account: Account | None, seconds: float) -> None:
        self.times += 1
        self.seconds = max(self.seconds, seconds)
        if account is not None:
            self.samples += account.samples
            self.twice += len(account.twice)
            self.missing += len(account.missing)
            self.well += account.is_well


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    chosen = [event for event in all_events() if _is_chosen(event, given)]
    if given.list:
        print("\n".join(event.name for event in chosen))
        return 0
    folder = Path(given.dir or mkdtemp(prefix="cluster-"))
    folder.mkdir(parents=True, exist_ok=True)
    print(one_line(environment(str(folder))), flush=True)
    signal.signal(signal.SIGTERM, _stop)
    try:
        rows = _play_all(chosen, folder, given)
    except KeyboardInterrupt:
        print(f"cluster: interrupted; all that was started is stopped, the runs are in {folder}", file=sys.stderr)
        return 130
    _print_table(rows)
    well = bool(rows) and all(row.well == row.times for row in rows)
    if well and not given.dir:
        shutil.rmtree(folder)
    return 0 if well else 1


def _play_all(chosen: Sequence[Event], folder: Path, given: argparse.Namespace) -> list[Row]:
    """Play the events one after the other; those whose scheduler is not there are left out."""
    rows: list[Row] = []
    with Site(folder) as site:
        for event in chosen:
            lacks = lacking(event.under)
            if lacks:
                print(f"{event.name}: not run, for lack of {lacks}", file=sys.stderr, flush=True)
            else:
                rows.append(_repeat(event, site, given.times, given.side_by_side))
    return rows


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--events", nargs="+", default=[], metavar="WORDS", help="those with one of these in the name")
    parser.add_argument("--times", type=int, default=1, help="how often each of them (default: 1)")
    parser.add_argument("--side-by-side", type=int, default=1, help="how many runs of an event at once (default: 1)")
    parser.add_argument("--quick", action="store_true", help="a selection that takes a few minutes")
    parser.add_argument("--list", action="store_true", help="list the events, and end")
    parser.add_argument("--dir", help="keep the runs here (default: a temporary folder, kept where a run is not well)")
    return parser


def _is_chosen(event: Event, given: argparse.Namespace) -> bool:
    named = not given.events or any(words in event.name for words in given.events)
    return named and (event.quick or not given.quick)


def _repeat(event: Event, site: Site, times: int, side_by_side: int) -> Row:
    """Play an event so often, each time at another point of the run."""
    row = Row(event.name)
    event.prepare(site)
    with ThreadPoolExecutor(1 if event.alone else side_by_side) as threads:
        try:
            for account, seconds in threads.map(lambda number: _play(event, site, number), range(times)):
                row.add(account, seconds)
        except KeyboardInterrupt:
            stopping.set()
            threads.shutdown(cancel_futures=True)
            raise
    print(f"{event.name}: {row.well} of {row.times} well, at most {row.seconds:.0f} s", file=sys.stderr, flush=True)
    return row


def _play(event: Event, site: Site, number: int) -> tuple[Account | None, float]:
    folder = site.folder / "".join(c if c.isalnum() else "-" for c in event.name) / str(number)
    began_at = time.monotonic()
    account: Account | None = None
    try:
        account = event.play(site, folder, _FIRST_AFTER + _STEP_AFTER * number)
        what = "" if account.is_well else f"{account}"
    except StoppedError:
        what = ""
    except Exception:
        what = traceback.format_exc()
    if what:
        logs = [f"--- {log}\n{log.read_text(errors='replace')[-2000:]}" for log in sorted(folder.glob("*.log"))]
        print(f"{event.name}, run {number} in {folder}:\n{what}\n" + "\n".join(logs), file=sys.stderr, flush=True)
    return account, time.monotonic() - began_at


def _print_table(rows: Sequence[Row]) -> None:
    print("| event | times | samples | trained twice | missing | well | longest |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for row in rows:
        cells = row.times, row.samples, row.twice, row.missing, row.well, f"{row.seconds:.0f} s"
        print(f"| {row.event} | {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    sys.exit(main())
