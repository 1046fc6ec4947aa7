"""Refs that this user may not take: get says so, by the file and its owner, and not that nothing is there."""

from __future__ import annotations

import errno
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from fsqueue import FileSampleRefQueue, QueueIOError
from fsqueue.disk.fileops import FileOps, using, wrapped
from tests.support import GUARD_S, Child, Queue, ids, names_in, refs

USER = GROUP = 61001


def denying(call: str, mark: str, code: int) -> FileOps:
    """File operations of which one is refused on files of this name."""

    def around(name: str, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if name == call and args and mark in str(args[0]):
            raise OSError(code, os.strerror(code))
        return real(*args, **kwargs)

    return wrapped(FileOps(), around)


@pytest.fixture(params=[errno.EACCES, errno.EPERM, errno.EIO], ids=errno.errorcode.get)
def denied(request: pytest.FixtureRequest, path: Path) -> Iterator[Queue]:
    """A queue of which the refs bad0 to bad2 cannot be stamped, and good can."""
    with FileSampleRefQueue(path, durable=False) as maker:
        maker.put(refs("bad0", "bad1", "bad2", "good"))
    with using(denying("utime", "bad", request.param)), FileSampleRefQueue(path, durable=False) as queue:
        yield queue


def test_a_get_that_leases_nothing_raises_for_as_long_as_they_are_pending(denied: Queue) -> None:
    """One that waits does each time, one that polls once a second."""
    assert ids(denied.get(9)) == ["good"], "one bad ref keeps nobody from the others"
    for timeout_s in [0.0] * 8 + [0.3]:
        with pytest.raises(QueueIOError):
            denied.get(1, timeout_s)
    began, raised = time.monotonic(), 0
    while raised < 2:
        try:
            assert denied.get(1) == [] and time.monotonic() - began < GUARD_S
        except QueueIOError:
            raised += 1
    assert time.monotonic() - began > 0.5
    assert denied.depth() == 3
    denied.put(refs("later"))
    assert ids(denied.get(1)) == ["later"]
    with using(FileOps()), FileSampleRefQueue(denied.path, durable=False) as other:
        other.ack(other.get(9))
    assert denied.get(1) == []


def test_the_loop_of_a_worker_ends_with_the_error_and_not_as_idle(denied: Queue) -> None:
    done: list[str] = []
    with pytest.raises(QueueIOError):
        for lease in denied.consume(batch=2, idle_s=0):
            with lease as ref:
                done.append(ref.sample_id)
    assert done == ["good"]
    for _ in range(4):
        with pytest.raises(QueueIOError):
            list(denied.consume(idle_s=0))


def test_a_partition_is_told_of_its_own_refs_alone(path: Path) -> None:
    with FileSampleRefQueue(path, durable=False) as maker:
        maker.put(refs(*(f"bad{n}" for n in range(6))))
    with using(denying("utime", "bad", errno.EACCES)), FileSampleRefQueue(path, durable=False) as queue:
        for index in (0, 1):
            for _ in range(4):
                with pytest.raises(QueueIOError):
                    queue.get(1, 0.0, partition=(index, 2))


def test_a_ref_that_could_not_be_read_is_told_of_each_time(path: Path) -> None:
    with FileSampleRefQueue(path, durable=False) as maker:
        maker.put(refs("bad"))
    with using(denying("open", "bad@", errno.EACCES)), FileSampleRefQueue(path, durable=False, owner="me") as queue:
        for _ in range(6):
            with pytest.raises(QueueIOError):
                queue.get(1)
    assert names_in(path, "failed") == [] and names_in(path, "done") == []


def test_a_ref_that_can_be_taken_after_all_is_no_error_any_more(path: Path) -> None:
    with FileSampleRefQueue(path, durable=False) as maker:
        maker.put(refs("bad"))
    ops = denying("utime", "bad", errno.EACCES)
    with using(ops), FileSampleRefQueue(path, durable=False) as queue:
        with pytest.raises(QueueIOError):
            queue.get(1)
        ops.utime = os.utime
        got = queue.get(1, 5.0)
        assert ids(got) == ["bad"]
        assert queue.get(1) == []
        queue.ack(got)
        assert queue.get(1) == []


def _as_a_member_of_the_group(pipe: Connection, path: Path) -> None:
    os.setgroups([])
    os.setgid(GROUP)
    os.setuid(USER)
    os.umask(0o002)
    with FileSampleRefQueue(path, durable=False) as queue:
        for _ in range(5):
            try:
                pipe.send(ids(queue.get(1, 0.0)))
            except QueueIOError as error:
                pipe.send(str(error))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_the_error_names_the_file_its_owner_and_this_user() -> None:
    """A member of the group that puts with umask 022."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        shared = Path(folder) / "shared"
        shared.mkdir()
        os.chown(shared, 0, GROUP)
        shared.chmod(0o2775)
        before = os.umask(0o002)
        try:
            with FileSampleRefQueue(shared / "q", durable=False) as queue:
                queue.put(refs("ok"))
                os.umask(0o022)
                queue.put(refs("bad"))
        finally:
            os.umask(before)
        with Child(_as_a_member_of_the_group, shared / "q") as child:
            assert child.receive() == ["ok"]
            for _ in range(4):
                told = child.receive()
                assert f"leasing {shared}/q/pending/bad.json failed: EACCES" in told
                assert f"user 0 (root), group {GROUP}, mode 0644" in told and f"this process is user {USER}" in told
