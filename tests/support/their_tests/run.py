"""Run SpecForge's own tests, which its wheel does not have, with its classes and with ours in their place.

    python tests/support/their_tests/run.py CHECKOUT [--only FILE ...]

CHECKOUT is a clone of SpecForge, at the release that is installed. Counted are those tests that pass here with
SpecForge's own classes; others want a GPU, a network or another release. Prints how many of them pass with ours, and
exits 1 where one fails that is not named below.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

WAYS = {
    "fsqueue's controller": "controller",
    "fsqueue's queue and ledger": "queue ledger",
    "fsqueue's controller, queue and ledger": "controller queue ledger",
    "fsqueue's queue, ledger and feature store": "queue ledger store",
    "all four": "controller queue ledger store",
}
"""What is plugged in; see `plugged_in`."""

INSIDES = {
    "test_poll_batches_one_db_commit_and_one_inbox_fsync_per_rank_window": "counts the SQL statements of store._conn",
    "test_sqlite_bulk_commit_rolls_back_the_whole_poll_on_insert_failure": "makes an SQL trigger through store._conn",
    "test_fresh_metadata_db_parent_is_created_by_consumer_authority": "wants the ledger to be a file, not a directory",
    "test_producer_and_consumer_share_only_the_directory": "wants a URI that begins with disagg://",
    "test_disagg_store_serves_identical_tensors": "wants URIs that begin with disagg://",
}
"""Tests that look at how theirs is made, and at what."""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkout", type=Path, help="a clone of SpecForge")
    parser.add_argument("--only", nargs="+", default=["tests/test_runtime"], help="what to run of it")
    given = parser.parse_args(arguments)
    for path in given.only:
        if not (given.checkout / path).exists():
            parser.error(f"{given.checkout} has no {path}: give a clone of SpecForge, whose wheel has no tests")
    wanted = passed(given.checkout, given.only, "")
    print(f"SpecForge {version('specforge')}: {len(wanted)} of its own tests pass here", flush=True)
    unknown = 0
    for way, parts in WAYS.items():
        failed = sorted(wanted - passed(given.checkout, given.only, parts))
        print(f"{len(wanted) - len(failed)} of {len(wanted)} with {way}", flush=True)
        for test in failed:
            print(f"    {test}: {INSIDES.get(test.rpartition('::')[2], 'FAILED')}", flush=True)
        unknown += sum(test.rpartition("::")[2] not in INSIDES for test in failed)
    return 1 if unknown or not wanted else 0


def passed(checkout: Path, only: Iterable[str], parts: str) -> set[str]:
    """Run a checkout's tests with these parts plugged in; return the names of those that pass."""
    here = Path(__file__).resolve().parent
    path = [str(here), str(here.parents[2]), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    # The package is the installed one: the checkout's own is not on the path when the plugin imports it.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path), "PYTHONSAFEPATH": "1", "FSQUEUE_PLUGGED": parts}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-p", "plugged_in", "-p", "no:cacheprovider", "-q"]
        command += ["--continue-on-collection-errors", f"--rootdir={checkout.resolve()}", f"--junitxml={report}", *only]
        done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
        if not report.exists():
            raise SystemExit(f"pytest wrote no report of {checkout}:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
        cases = ElementTree.parse(report).iter("testcase")
        return {f"{case.get('classname')}::{case.get('name')}" for case in cases if len(case) == 0}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
