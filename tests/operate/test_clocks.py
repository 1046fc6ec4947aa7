"""A node whose clock is five minutes off: ages go by the clock that stamps the files, whoever looks."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fsqueue import FileSampleRefQueue
from fsqueue.operate.operator import pack, purge
from fsqueue.operate.show import entries, show
from fsqueue.operate.status import Status, status
from tests.support import Tap, backdate, names_in, refs
from tests.support.program import run

SKEW_S = 300.0
MODIFYING = {"write", "pwrite", "ftruncate", "fsync", "rename", "link", "unlink", "mkdir", "utime"}
MOUNTS = ["local", "shared", "without unnamed files"]

skewed = pytest.mark.parametrize("skew_s", [SKEW_S, -SKEW_S], ids=["ahead", "behind"])
mounts = pytest.mark.parametrize("mount", MOUNTS)


@contextmanager
def off(skew_s: float, mount: str = "local", refused: int = 0) -> Iterator[Tap]:
    """Look as a node whose clock is off does.

    Args:
        refused: the error of a touch of order.lock, if any.
    """
    tap = Tap()
    right = tap.ops.time
    tap.ops.time = lambda: right() + skew_s
    if mount != "local":
        tap.ops.filesystem_type = lambda path: "nfs4"

    def before(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name == "open" and args[1] & os.O_TMPFILE == os.O_TMPFILE and mount == MOUNTS[-1]:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        if name == "utime" and refused:
            raise OSError(refused, os.strerror(refused))

    tap.before = before
    with tap.here():
        yield tap


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A queue with a ref in each state, the pending and the leased one a minute old, the others ten."""
    path = tmp_path / "q"
    with FileSampleRefQueue(path, lease_timeout_s=600.0, durable=False) as queue:
        queue.put(refs("done", "dead", "held", "waits"))
        queue.ack(queue.get(1))
        queue.fail(queue.get(1), "broken", retryable=False)
        assert len(queue.get(1)) == 1
        for state, age_s in (("pending", 60.0), ("leased", 60.0), ("done", 600.0), ("failed", 600.0)):
            (name,) = names_in(path, state)
            backdate(path / state / name, age_s)
    return path


def about(found: float | None, expected: float) -> bool:
    return found is not None and expected - 0.1 <= found < expected + 60.0


@skewed
@mounts
def test_status_shows_the_ages_that_the_filesystem_knows(path: Path, skew_s: float, mount: str) -> None:
    with off(skew_s, mount):
        seen = status(path)
    assert about(seen.oldest_pending_age_s, 60.0) and about(seen.oldest_lease_age_s, 60.0)


@skewed
def test_top_shows_them_too(path: Path, skew_s: float) -> None:
    with off(skew_s):
        (line,) = run("top", path, "--count", "1", "--json").stdout.splitlines()
    assert about(json.loads(line)["oldest_lease_age_s"], 60.0)


def members(seen: Status) -> list[tuple[str, str]]:
    assert seen.stream is not None
    return [(member.name, member.state) for member in seen.stream.members]


@skewed
@mounts
def test_a_live_producer_is_not_silent(path: Path, skew_s: float, mount: str) -> None:
    """A record of another node's process says nothing but by its heartbeat."""
    with FileSampleRefQueue(path, durable=False) as queue, queue.producer("rollout"):
        for file in (path / "stream").iterdir():
            file.write_text(file.read_text().replace('"boot_id":"', '"boot_id":"another'))
        with off(skew_s, mount):
            assert members(status(path)) == [("rollout", "joined")]
        for file in (path / "stream").iterdir():
            backdate(file, 100.0)
        with off(skew_s, mount):
            assert members(status(path)) == [("rollout", "silent")]


@skewed
@mounts
def test_ls_and_show_tell_the_same_ages(path: Path, skew_s: float, mount: str) -> None:
    with off(skew_s, mount):
        listed = {entry.id: entry.age_s for entry in entries(path, ["pending", "leased", "done"], details=True)}
        (detail,) = show(path, "held")
    assert about(listed["waits"], 60.0) and about(listed["held"], 60.0) and about(listed["done"], 600.0)
    assert about(detail.age_s, 60.0) and detail.owner is not None and about(detail.owner.oldest_lease_age_s, 60.0)


@skewed
@mounts
@pytest.mark.parametrize(("older_than_s", "found"), [(500.0, 1), (700.0, 0)])
def test_a_dry_run_lists_what_the_run_does(
    path: Path, skew_s: float, mount: str, older_than_s: float, found: int
) -> None:
    with off(skew_s, mount):
        dry = pack(str(path), older_than_s, dry_run=True), purge(str(path), "failed", older_than_s, dry_run=True)
        run = pack(str(path), older_than_s), purge(str(path), "failed", older_than_s)
    assert dry == run
    assert (run[0].refs, len(run[1].files)) == (found, found)


@mounts
def test_looking_modifies_at_most_the_stamp_of_the_order_file(path: Path, mount: str) -> None:
    """And that only where there are no files without a name, and other hosts stamp files too."""
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    with off(SKEW_S, mount) as tap:
        status(path)
        entries(path, ["pending"], details=True)
        show(path, "held")
        pack(str(path), 0.0, dry_run=True)
    touched = {"utime"} if mount == MOUNTS[-1] else set()
    assert set(tap.counts) & MODIFYING == touched
    after = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    assert {file.name for file in before.keys() | after if before.get(file) != after.get(file)} <= (
        {"order.lock"} if touched else set()
    )


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS], ids=errno.errorcode.get)
def test_who_may_not_touch_anything_sees_ages_by_his_own_clock(path: Path, code: int) -> None:
    """At least the newest stamp counts as now, so that a clock that is behind shows nothing of the future."""
    with off(SKEW_S, MOUNTS[-1], refused=code):
        assert about(status(path).oldest_lease_age_s, 60.0 + SKEW_S)
    with off(-SKEW_S, MOUNTS[-1], refused=code):
        assert about(status(path).oldest_lease_age_s, 60.0)


def test_a_queue_on_a_read_only_mount_can_be_looked_at(path: Path) -> None:
    point = path.with_name("read-only")
    point.mkdir()
    bound = subprocess.run(["mount", "--bind", str(path), str(point)], capture_output=True, text=True, timeout=60)
    if bound.returncode:
        pytest.skip(f"a bind mount needs root: {bound.stderr.strip()}")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(point)], check=True, timeout=60)
        for mount in MOUNTS:
            with off(0.0, mount):
                assert about(status(point).oldest_lease_age_s, 60.0)
                assert pack(str(point), 500.0, dry_run=True).refs == 1
    finally:
        subprocess.run(["umount", "-l", str(point)], check=True, timeout=60)
