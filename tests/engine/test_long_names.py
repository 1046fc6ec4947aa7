"""A mount that takes shorter names than others: put refuses what no get could lease."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsqueue import FileSampleRefQueue, InvalidRefError, NameTooLongError
from fsqueue.operate.requeue import requeue
from tests.support import GUARD_S, Queue, assert_clean, drain, ids, names_in, ref, refs
from tests.support.lying import LyingClient


@pytest.fixture
def encfs(tmp_path: Path) -> Iterator[Path]:
    """A directory on a real encfs, whose names end at about 175 bytes though statvfs tells another limit."""
    if not (shutil.which("encfs") and shutil.which("fusermount") and os.access("/dev/fuse", os.R_OK | os.W_OK)):
        pytest.skip("needs encfs, fusermount and /dev/fuse")
    raw, plain = tmp_path / "raw", tmp_path / "plain"
    raw.mkdir()
    plain.mkdir()
    made = subprocess.run(
        ["encfs", "-S", "--standard", str(raw), str(plain)],
        input=b"secret\n", capture_output=True, timeout=GUARD_S, check=False,
    )  # fmt: skip
    if made.returncode:
        pytest.skip(f"encfs does not mount here: {made.stderr.decode(errors='replace')[-200:]}")
    try:
        yield plain
    finally:
        subprocess.run(["fusermount", "-u", str(plain)], check=True, timeout=GUARD_S)


def refused(queue: Queue, sample_id: str) -> NameTooLongError:
    """Put a batch with this id; it is refused as a whole."""
    with pytest.raises(NameTooLongError) as caught:
        queue.put([ref("short"), ref(sample_id)])
    assert queue.depth() == 0 and names_in(Path(queue.path), "tmp") == []
    return caught.value


@pytest.mark.parametrize("sample_id", ["s" * 49, "é" * 100], ids=["long", "cut"])
def test_too_long_for_the_mount(path: Path, sample_id: str) -> None:
    """The error names the ref, the mount's limit, the longest id that fits and what to do; that id fits."""
    client = LyingClient("ecryptfs")
    client.longest_name = 143
    queue = client.open_queue(path, owner="n" * 64)
    error = refused(queue, sample_id)
    assert isinstance(error, InvalidRefError) and isinstance(error, OSError)
    assert (error.sample_id, error.limit, error.longest_id) == (sample_id, 143, 48)
    assert sample_id in str(error) and "143 bytes" in str(error) and "48 bytes" in str(error)
    assert str(path) in str(error) and "choose shorter ids" in str(error)
    queue.put(refs("s" * 48))
    queue.fail(queue.get(1), "broken", retryable=True)
    assert drain(queue) == ["s" * 48]
    assert_clean(path)


def test_names_that_fit_cost_one_try(path: Path) -> None:
    """On a mount that takes long names, the first long id costs one file in tmp/, those after it nothing."""
    client = LyingClient("nfs4")
    queue = client.open_queue(path)
    tried: list[str] = []
    client.before = lambda call, args: tried.append(args[0]) if call == "unlink" and "nnn" in args[0] else None
    queue.put(refs("a" * 100))
    queue.put(refs("b" * 100, "c" * 60))
    assert len(tried) == 1 and len(tried[0]) == 195
    assert len(drain(queue)) == 3
    assert names_in(path, "tmp") == []


def test_a_local_mount_is_not_asked(path: Path) -> None:
    """Local filesystems are known to take all names of a queue."""
    client = LyingClient("ext4")
    client.no_ops = client.stale_names = False
    queue = client.open_queue(path)
    queue.put(refs("a"))
    removed: list[str] = []
    client.before = lambda call, args: removed.append(args[0]) if call == "unlink" else None
    queue.put(refs("a" * 160))
    assert removed == []


def test_real_encfs(encfs: Path) -> None:
    """On encfs a long id is refused by put, and the longest that fits goes through every state."""
    path = encfs / "q"
    with FileSampleRefQueue(path) as queue:
        error = refused(queue, "s" * 120)
        assert 143 < error.limit < 200 and error.longest_id == error.limit - 95
        longest = "s" * error.longest_id
        queue.put(refs(longest))
        queue.release(queue.get(1))
        assert ids(queue.get(1)) == [longest]
        assert queue.ack(refs(longest), step=123_456) == []
        assert queue.rewind(after_step=1) == [longest]
        queue.fail(queue.get(1), "broken", retryable=False)
        assert [each.moved for each in requeue(str(path), [longest])] == [True]
        assert ids(queue.get(1, 5.0)) == [longest]
        queue.ack(refs(longest), step=1)
        assert queue.pack(older_than_s=0.0).refs == 1
    assert_clean(path)
