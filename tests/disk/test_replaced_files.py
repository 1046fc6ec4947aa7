"""Small files that others replace: asked for again where a mount has none for an instant, and absent where they are."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fsqueue.disk.directory import Directory
from fsqueue.disk.fileops import FileOps, wrapped
from fsqueue.disk.publish import read_replaced
from tests.support import FakeClock

SHARED, NFS, LOCAL = "fuse.unheard-of", "nfs4", "ext4"
NAME = "policy.json"


class Opens:
    """Let the first opens of one name fail; note what is called, and how long is slept in all.

    Attributes:
        codes: what each of the next opens of the name says, in turn.
    """

    def __init__(self, kind: str, *codes: int) -> None:
        self.codes = list(codes)
        self.calls: list[str] = []
        self.slept = FakeClock(0.0)
        self.ops = wrapped(FileOps(), self._around)
        self.ops.filesystem_type = lambda path: kind
        self.ops.sleep = self.slept.advance

    def _around(self, call: str, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.calls.append(call)
        if call == "open" and args[0] == NAME and self.codes:
            code = self.codes.pop(0)
            raise OSError(code, os.strerror(code), NAME)
        return real(*args, **kwargs)


def directory_at(path: Path, opens: Opens, content: bytes | None = b"new") -> Directory:
    if content is not None:
        (path / NAME).write_bytes(content)
    found = Directory(opens.ops, str(path))
    opens.calls.clear()
    return found


@pytest.mark.parametrize("kind", [SHARED, NFS])
@pytest.mark.parametrize("code", [errno.ESTALE, errno.EBADF])
def test_a_file_that_was_just_replaced_is_read_at_the_second_try(tmp_path: Path, kind: str, code: int) -> None:
    """Whatever the mount is, as long as it is a shared one."""
    opens = Opens(kind, code, code)
    assert read_replaced(directory_at(tmp_path, opens), NAME) == b"new"
    assert 0 < opens.slept() < 0.1


def test_a_file_that_is_missing_for_an_instant_is_found_where_a_listing_shows_it(tmp_path: Path) -> None:
    """Not on NFS, where a rename replaces at once: there missing is missing, without a question more."""
    assert read_replaced(directory_at(tmp_path, Opens(SHARED, *[errno.ENOENT] * 3)), NAME) == b"new"
    opens = Opens(NFS, errno.ENOENT)
    directory = directory_at(tmp_path, opens)
    with pytest.raises(FileNotFoundError):
        read_replaced(directory, NAME)
    assert opens.calls == ["open"]


def test_an_absent_file_is_absent_at_once(tmp_path: Path) -> None:
    """A listing decides, and nobody waits; but for who knows that it was there."""
    opens = Opens(SHARED)
    directory = directory_at(tmp_path, opens, None)
    with pytest.raises(FileNotFoundError):
        read_replaced(directory, NAME)
    assert opens.calls == ["open", "open", "listdir", "close"]
    assert opens.slept() == 0.0
    with pytest.raises(FileNotFoundError):
        read_replaced(directory, NAME, surely=True)
    assert 0.1 < opens.slept() < 1.0


def test_a_file_that_cannot_be_read_at_all_is_an_error_soon(tmp_path: Path) -> None:
    """A mount that has lost its server goes on saying ESTALE."""
    opens = Opens(SHARED, *[errno.ESTALE] * 100)
    with pytest.raises(OSError) as caught:
        read_replaced(directory_at(tmp_path, opens), NAME)
    assert caught.value.errno == errno.ESTALE
    assert opens.slept() < 1.0


@pytest.mark.parametrize("code", [errno.ENOENT, errno.ESTALE, errno.EBADF])
def test_on_a_local_disk_nothing_is_asked_twice(tmp_path: Path, code: int) -> None:
    """Neither where the file is there nor where it is not."""
    opens = Opens(LOCAL)
    directory = directory_at(tmp_path, opens)
    assert read_replaced(directory, NAME) == b"new"
    assert opens.calls == ["open", "read", "close"]
    opens.codes, opens.calls = [code], []
    with pytest.raises(OSError):
        read_replaced(directory, NAME)
    assert opens.calls == ["open"]
    assert opens.slept() == 0.0
