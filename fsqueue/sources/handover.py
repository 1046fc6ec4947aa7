"""The directory into which a server's connector writes one safetensors file a prompt, and how it hands them over.

The connector opens `<file>.lock`, takes flock(LOCK_EX) on it before its reply leaves, writes the file, and closes the
lock. Whoever takes LOCK_SH finds the file whole; where the server was killed meanwhile, there is none, or a torn one.
Names come from the server's replies, so they are not trusted: they have to name a file right inside the directory, and
nothing is opened through a symbolic link.

Source: vLLM 0.32.0, vllm/distributed/kv_transfer/kv_connector/v1/example_hidden_states_connector.py
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

from torch import Tensor

from fsqueue.disk.fileops import DIRECTORY, FileOps, current, silently_remove
from fsqueue.disk.publish import absolute
from fsqueue.errors import CorruptRefError
from fsqueue.features import apart
from fsqueue.features.tensorfile import Metadata, NotTensorsError, TensorHeader, read_header

LOCK = ".lock"
SUFFIX = ".safetensors"
_FIRST_PAUSE_S = 0.002
_LONGEST_PAUSE_S = 0.1


class NotHandedOverError(Exception):
    """The file is not there, or not whole; the text says how far it came, and fits after "because"."""


class UntrustedPathError(Exception):
    """A reply names a path where no file may be taken from."""


class Written(NamedTuple):
    """A whole file: its header, and the bytes of one of its tensors."""

    header: TensorHeader
    token_ids: bytes


class Handover:
    """The connector's directory.

    Args:
        directory: where it is here.
        server_directory: what it is called in the server's replies.
    """

    def __init__(self, directory: str | os.PathLike[str], server_directory: str | None = None) -> None:
        self.directory = absolute(directory)
        self._at_server = os.path.normpath(server_directory or self.directory)
        self._ops: FileOps = current()

    def path_of(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def name_of(self, path: object) -> str:
        """Return the name of the file that a reply names.

        Raises:
            UntrustedPathError: it is nothing right inside the directory.
        """
        if not isinstance(path, str) or "\0" in path:
            raise UntrustedPathError(f"it names {path!r}")
        folder, name = os.path.split(path)
        ours = {self._at_server, os.path.realpath(self.directory)}
        if not name.endswith(SUFFIX) or name in (SUFFIX, ".", "..") or os.path.normpath(folder) not in ours:
            raise UntrustedPathError(f"it names {path!r}, which is not a {SUFFIX} file right in {self._at_server}")
        return name

    def take(self, name: str, *, within_s: float, settle_s: float) -> Written:
        """Wait until a file is written, and read its header.

        Args:
            within_s: how long the writer may hold its lock.
            settle_s: how long a file may be missing, or torn, though no lock is held: what another node wrote may
                show late, and where flock ends at the node, the lock says nothing.

        Raises:
            NotHandedOverError: it did not come.
        """
        ops = self._ops
        started, pause_s, free_since, why = ops.monotonic(), _FIRST_PAUSE_S, None, "its lock is held"
        while True:
            now = ops.monotonic()
            found = self._look(name)
            if isinstance(found, Written):
                return found
            if found is None:
                free_since = None
                if now - started >= within_s:
                    raise NotHandedOverError(f"{name} was not written within {within_s:g} s ({why})")
            else:
                why, free_since = found, free_since if free_since is not None else now
                if now - free_since >= settle_s:
                    raise NotHandedOverError(f"{name} {why}, and nobody is writing it")
            ops.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _look(self, name: str) -> Written | str | None:
        """Return the file; why there is none, though nobody holds its lock; or None, where somebody does."""
        with self._opened() as dir_fd:
            try:
                lock_fd = self._ops.open_to_read(dir_fd, name + LOCK)
            except (FileNotFoundError, CorruptRefError):
                return "has no lock file"
            try:
                fcntl.flock(lock_fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return self._read(dir_fd, name)
            except BlockingIOError:
                return None
            except FileNotFoundError:
                return "is not there"
            except (CorruptRefError, NotTensorsError) as error:
                return f"is not whole ({error})"
            finally:
                self._ops.close(lock_fd)

    def _read(self, dir_fd: int, name: str) -> Written:
        fd = self._ops.open_to_read(dir_fd, name)
        try:
            header = self._header(fd)
            entry = header.entries.get("token_ids")
            start, stop = entry.data_offsets if entry is not None else (0, 0)
            return Written(header, self._ops.pread(fd, stop - start, header.data_at + start))
        finally:
            self._ops.close(fd)

    def load(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of a file that was taken."""
        with self._opened() as dir_fd:
            fd = self._ops.open_to_read(dir_fd, name)
        try:
            header = self._header(fd)
            return header.tensors(apart.content_of(self._ops, apart.OpenFile(fd, apart.size_of(self._ops, fd), header)))
        finally:
            self._ops.close(fd)

    def _header(self, fd: int) -> TensorHeader:
        return read_header(partial(self._ops.pread, fd), apart.size_of(self._ops, fd), Metadata("", ""))

    def remove(self, name: str) -> None:
        """Remove a file and its lock; what is gone already, or not ours to remove, is left."""
        with self._opened() as dir_fd:
            silently_remove(self._ops, dir_fd, [name, name + LOCK])

    def remove_lock(self, name: str) -> None:
        with self._opened() as dir_fd:
            silently_remove(self._ops, dir_fd, [name + LOCK])

    def sweep(self, mark: str, *, but: Collection[str] = ()) -> None:
        """Remove the files whose names have this mark, but for these; one that is being written stays.

        Replies that never came leave files, and runs that were killed do.
        """
        with self._opened() as dir_fd:
            names = {name.removesuffix(LOCK) for name in self._ops.listdir(dir_fd) if mark in name}
        for name in sorted(names.difference(but)):
            if name.endswith(SUFFIX) and self._look(name) is not None:
                self.remove(name)

    @contextmanager
    def _opened(self) -> Iterator[int]:
        fd = self._ops.open(self.directory, DIRECTORY)
        try:
            yield fd
        finally:
            self._ops.close(fd)
