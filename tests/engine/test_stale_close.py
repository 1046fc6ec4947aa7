"""Mounts whose close says ESTALE where another one has removed or replaced the file: it tells nothing."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fsqueue import FileSampleRefQueue, QueueIOError
from fsqueue.disk.fileops import FileOps, using, wrapped
from fsqueue.operate.check import check_queue
from fsqueue.operate.requeue import requeue
from tests.support import Queue, assert_clean, ids, names_in, numbered, refs


class Closing:
    """Close what is to be closed, and then say that something was wrong.

    Attributes:
        code: what is said; 0: nothing.
        wanted: of which descriptors; they are still open.
    """

    def __init__(self, kind: str = "fuse.glusterfs", code: int = errno.ESTALE) -> None:
        self.code = code
        self.wanted: Callable[[int], bool] = lambda fd: True
        self.told = 0
        self.ops = wrapped(FileOps(), self._around)
        self.ops.filesystem_type = lambda path: kind

    def _around(self, call: str, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if call != "close":
            return real(*args, **kwargs)
        says_so = self.code and self.wanted(args[0])
        real(*args)
        if says_so:
            self.told += 1
            raise OSError(self.code, os.strerror(self.code))
        return None


def is_in_tmp(fd: int) -> bool:
    return os.path.basename(os.path.dirname(os.readlink(f"/proc/self/fd/{fd}"))) == "tmp"


@pytest.mark.parametrize("kind", ["fuse.glusterfs", "nfs4"])
@pytest.mark.parametrize("durable", [False, True])
def test_a_whole_life_where_every_close_says_stale(path: Path, kind: str, durable: bool) -> None:
    """Creation, put, get, fail, ack, pack, rewind, requeue, the stream, the check, and the end of the handle."""
    closing = Closing(kind)
    with using(closing.ops):
        queue: Queue = FileSampleRefQueue(path, durable=durable, lease_timeout_s=60.0)
        with queue.consumer("trainer"), queue.producer("rollout"):
            queue.configure_stream(quorum=1)
            queue.put(numbered(5))
            assert ids(queue.get(5)) == ids(numbered(5))
            queue.fail(refs("s00000"), "again", retryable=True)
            queue.fail(refs("s00001"), "never", retryable=False)
            queue.ack(refs("s00002", "s00003"), step=1)
            queue.ack(refs("s00004"), step=2)
            assert queue.pack(older_than_s=-1.0).refs == 3
            assert queue.rewind(after_step=1) == ["s00004"]
            requeue(str(path), ["s00001"])
            assert sorted(ids(queue.get(8, 10.0))) == ["s00000", "s00001", "s00004"]
            queue.ack(refs("s00000", "s00001", "s00004"))
        queue.close()
        assert check_queue(path) == []
    assert closing.told > 50
    assert_clean(path)


@pytest.mark.parametrize("code", [errno.EIO, errno.EDQUOT])
def test_another_error_of_close_is_a_failed_put(path: Path, code: int) -> None:
    """What is written may not have come to the server; nothing is left of it."""
    closing = Closing(code=0)
    with using(closing.ops), FileSampleRefQueue(path, durable=False) as queue:
        queue.put(refs("a"))
        closing.wanted, closing.code = is_in_tmp, code
        with pytest.raises(QueueIOError):
            queue.put(refs("b"))
        closing.code = 0
    assert names_in(path, "pending") == ["a.json"]
    assert names_in(path, "tmp") == []


def test_a_file_that_is_there_but_not_all_of_it_is_a_failed_put(path: Path) -> None:
    """Where close says ESTALE, a look at the file's size tells."""
    closing = Closing(code=0)

    def is_cut_short(fd: int) -> bool:
        if not is_in_tmp(fd):
            return False
        os.ftruncate(fd, 10)
        return True

    with using(closing.ops), FileSampleRefQueue(path, durable=False) as queue:
        queue.put(refs("a"))
        closing.wanted, closing.code = is_cut_short, errno.ESTALE
        with pytest.raises(QueueIOError):
            queue.put(refs("b"))
        closing.code = 0
    assert names_in(path, "pending") == ["a.json"]
