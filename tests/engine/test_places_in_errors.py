"""What an error of the filesystem names: the file, with the directory of the queue that it is in."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from fsqueue import FileSampleRefQueue
from fsqueue.operate.operator import purge
from fsqueue.operate.requeue import requeue_failed
from tests.support import Child, refs

USER = GROUP = 61001
CALLS: dict[str, tuple[Callable[[Any], object], str, str]] = {
    "put, tmp": (lambda q: q.put(refs("n")), "tmp", r"'tmp/[^/']+\.0'"),
    "put, pending": (lambda q: q.put(refs("n")), "pending", r"'tmp/[^/']+' -> 'pending/n\.json'"),
    "get, tmp": (lambda q: q.get(1), "tmp", r"'tmp/[^/']+'"),
    "get, owners": (lambda q: q.get(1), "owners", r"'tmp/[^/']+' -> 'owners/[^/']+\.json'"),
    "get, leased": (lambda q: q.get(1), "leased", r"'pending/p\.json' -> 'leased/p@[^/']+\.json'"),
    "ack, done": (lambda q: q.ack(q.get(1), step=4), "done", r"'leased/p@[^/']+' -> 'done/p@4\.json'"),
    "fail, failed": (lambda q: q.fail(q.get(1), "x", False), "failed", r"'leased/p@[^/']+' -> 'failed/p\.json'"),
    "pack, done": (lambda q: q.pack(older_than_s=-10), "done", r"'done/packing-[^/']+\.jsonl'"),
    "purge, done": (lambda q: purge(q.path, "done", 0.0), "done", r"'done/d@3\.json'"),
    "requeue, tmp": (lambda q: requeue_failed(q.path), "tmp", r"'tmp/[^/']+'"),
    "requeue, failed": (lambda q: requeue_failed(q.path), "failed", r"'failed/f\.json' -> 'leased/f@[^/']+'"),
    "rewind, done": (lambda q: q.rewind(after_step=1), "done", r"'done/d@3\.json' -> 'leased/d@[^/']+'"),
    "configure": (lambda q: q.configure(lease_timeout_s=77), ".", r"'\.fsqueue\.json\.[^/']+'"),
    "policy, tmp": (lambda q: q.configure_stream(silence_s=9), "tmp", r"'tmp/[^/']+'"),
}


@pytest.fixture
def public() -> Iterator[Path]:
    """A queue with a ref in each state, that every user may use, in a place that every user reaches."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder) / "q"
        with FileSampleRefQueue(path, durable=False) as queue:
            queue.put(refs("d", "f", "p"))
            queue.ack(queue.get(1), step=3)
            queue.fail(queue.get(1), "broken", retryable=False)
        for file in (path, *path.rglob("*")):
            file.chmod(0o777)
        yield path


def as_another_user(pipe: Connection, path: Path, which: str) -> None:
    import fsqueue.stream.stream  # noqa: F401  # this user may not read where it is

    os.setgroups([])
    os.setgid(GROUP)
    os.setuid(USER)
    with FileSampleRefQueue(path, durable=False) as queue:
        try:
            CALLS[which][0](queue)
        except OSError as error:
            pipe.send(str(error))
        else:
            pipe.send("no error")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
@pytest.mark.parametrize("which", CALLS)
def test_the_file_is_named_with_its_directory(public: Path, which: str) -> None:
    _, directory, words = CALLS[which]
    (public / directory).chmod(0o755)
    with Child(as_another_user, public, which) as child:
        told = child.receive()
    assert re.search(rf" failed at {words}: EACCES ", told), told
