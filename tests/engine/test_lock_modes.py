"""Mounts without flock, and the other kinds of lock."""

from __future__ import annotations

import errno
import os
import warnings
from pathlib import Path
from typing import Any

import pytest

from fsqueue import FileSampleRefQueue, LockUnsupportedError, QueueConfigError, QueueIOError, StaleLockWarning
from fsqueue.engine import lock, order_lease
from tests.support import (
    InThread,
    Queue,
    Tap,
    drain,
    ids,
    names_in,
    open_tapped,
    refs,
)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_missing_flock_is_an_error_that_says_what_to_mount(path: Path, code: int) -> None:
    """On a mount without flock, opening fails with the mount option to use; nothing is downgraded silently."""
    tap = Tap()

    def unsupported(name: str, *_: Any) -> None:
        if name == "lock":
            raise OSError(code, os.strerror(code))

    tap.before = unsupported
    with pytest.raises(LockUnsupportedError) as caught:
        open_tapped(tap, path)
    text = str(caught.value)
    assert "-o flock" in text and "nolock" in text and "lock='lease'" in text and "lock='none'" in text
    assert str(path) in text and caught.value.errno == code
    assert isinstance(caught.value, QueueIOError)


def test_flock_that_goes_missing_later(path: Path) -> None:
    """A flock that stops being supported under a handle is the same error from put and get, and loses nothing."""
    tap = Tap()
    queue = open_tapped(tap, path)
    queue.put(refs("a"))

    def unsupported(name: str, *_: Any) -> None:
        if name == "lock":
            raise OSError(errno.ENOLCK, "injected")

    tap.before = unsupported
    with pytest.raises(LockUnsupportedError):
        queue.put(refs("b"))
    with pytest.raises(LockUnsupportedError):
        queue.get(1)
    tap.before = None
    assert names_in(path, "tmp") == []
    queue.put(refs("b"))
    assert drain(queue) == ["a", "b"]


@pytest.mark.parametrize("mode", ["lease", "none"])
def test_other_modes_need_no_flock(path: Path, mode: str) -> None:
    """A queue made with lock="lease" or "none" works where flock fails, for handles that do not ask for a mode too."""

    def unsupported(name: str, *_: Any) -> None:
        if name in ("lock", "unlock"):
            raise OSError(errno.ENOSYS, "injected")

    handles: list[Queue] = []
    for arguments in ({"lock": mode}, {}):
        tap = Tap()
        tap.before = unsupported
        handles.append(open_tapped(tap, path, durable=False, **arguments))
    handles[0].put(refs("a", "b"))
    handles[1].put(refs("b", "c"))
    assert ids(handles[1].get(2)) == ["a", "b"]
    assert ids(handles[0].get(2)) == ["c"]
    for handle in handles:
        handle.close()
    assert not (path / "order.lease").exists()


def test_stuck_lease_does_not_hang_a_put(path: Path, impatient: None) -> None:
    """A put behind a lease lock that a living process does not give back ends, in an error or past it; gets go on."""
    queue = FileSampleRefQueue(path, lock="lease", durable=False)
    queue.put(refs("a"))
    other = FileSampleRefQueue(path, durable=False)
    from filelock import SoftFileLease

    holder = SoftFileLease(path / "order.lease", lease_duration=order_lease.LEASE_DURATION_S, thread_local=False)
    with holder, warnings.catch_warnings():
        warnings.simplefilter("ignore", StaleLockWarning)
        thread = InThread(lambda: queue.put(refs("b")))
        assert ids(other.get(5)) == ["a"]
        try:
            thread.result()
        except (QueueIOError, TimeoutError) as error:
            assert "order.lease" in str(error)
            holder.release()
            queue.put(refs("b"))
    assert ids(other.get(5, 5.0)) == ["b"]
    assert names_in(path, "tmp") == []


@pytest.mark.parametrize("left", [b"", b"filelock/2\npid=", b"\0" * 40])
def test_marker_that_a_kill_left_unfinished(path: Path, monkeypatch: pytest.MonkeyPatch, left: bytes) -> None:
    """A lease file that a killed process left unfinished, some time ago, does not keep a put from going on."""
    monkeypatch.setattr(lock, "PUT_TIMEOUT_S", 0.5)
    queue = FileSampleRefQueue(path, lock="lease", durable=False)
    (path / "order.lease").write_bytes(left)
    os.utime(path / "order.lease", (1_000.0, 1_000.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StaleLockWarning)
        queue.put(refs("a"))
    assert drain(queue) == ["a"]


def test_consumers_get_rid_of_an_unfinished_marker_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A get goes on past an empty lease file, and removes it, so that no other call has to wait for it."""
    monkeypatch.setattr(lock, "GET_PATIENCE_S", 0.2)
    queue = FileSampleRefQueue(path, lock="lease", durable=False)
    queue.put(refs("a"))
    (path / "order.lease").write_bytes(b"")
    os.utime(path / "order.lease", (1_000.0, 1_000.0))
    with pytest.warns(StaleLockWarning, match=r"order\.lease"):
        assert ids(queue.get(1)) == ["a"]
    assert not (path / "order.lease").exists()


@pytest.mark.parametrize("call", ["get", "put"])
def test_another_duration_of_the_lease_is_named(path: Path, call: str) -> None:
    """A program whose lease on order.lease has another duration gets this queue's own error, with both numbers."""
    from filelock import SoftFileLease

    queue = FileSampleRefQueue(path, lock="lease", durable=False)
    with (
        SoftFileLease(path / "order.lease", lease_duration=33.0, thread_local=False),
        pytest.raises(QueueConfigError, match=r"another lease duration than the 15 s.*33\.0"),
    ):
        queue.get(1) if call == "get" else queue.put(refs("a"))
    queue.put(refs("b"))
    assert drain(queue) == ["b"]
