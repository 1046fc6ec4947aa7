"""The root directory of a feature store, and the settings in its features.json."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from fsqueue.disk.directory import Directory
from fsqueue.disk.fileops import FileOps
from fsqueue.disk.publish import make_directory, make_within, publish_once, refusal_of, strangers_in, sync_parent
from fsqueue.errors import CorruptRefError
from fsqueue.features.errors import FeatureStoreError

FORMAT = 1
SETTINGS = "features.json"
TMP = "tmp"


class StoreSettings(msgspec.Struct, frozen=True):
    """The content of a store's features.json.

    Attributes:
        store_id: 16 hex digits, drawn when the store was made; part of every address in it.
    """

    format: int
    store_id: str
    created_at: float


class StoreRoot:
    """The root directory of a store, open, with its settings.

    Opening it creates the store where the directory is missing or empty.

    Raises:
        FeatureStoreError: the directory is not empty and no store, or one of another format.
    """

    def __init__(self, ops: FileOps, path: str) -> None:
        self.ops = ops
        make_directory(ops, path)
        self.directory = Directory(ops, path)
        try:
            self.settings = self._read() or self._create()
        except BaseException:
            self.directory.close()
            raise

    def _create(self) -> StoreSettings:
        """CRASH: before features.json is there, the directory holds an empty tmp/, which the next creator completes."""
        if strangers := strangers_in(self.directory, {TMP, SETTINGS}):
            raise self._refused(refusal_of(strangers, SETTINGS))
        make_within(self.ops, self.directory, TMP)
        settings = StoreSettings(FORMAT, secrets.token_hex(8), self.ops.time())
        publish_once(self.ops, self.directory, SETTINGS, msgspec.json.encode(settings) + b"\n")
        sync_parent(self.ops, self.directory.path)
        found = self._read()  # another process may have been first
        if found is None:
            raise self._refused(f"vanished while it was created: {SETTINGS} is gone")
        return found

    def _read(self) -> StoreSettings | None:
        try:
            found = msgspec.json.decode(self.ops.read_file(self.directory.fd, SETTINGS), type=StoreSettings)
        except FileNotFoundError:
            return None
        except (CorruptRefError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._refused(f"has a damaged {SETTINGS} ({error}): look who wrote it") from None
        if found.format != FORMAT:
            raise self._refused(f"has format {found.format}, this fsqueue reads {FORMAT}: upgrade fsqueue")
        return found

    def _refused(self, problem: str) -> FeatureStoreError:
        return FeatureStoreError(self.directory.path, problem)

    @contextmanager
    def folder(self, name: str, create: bool = False) -> Iterator[int]:
        """Open a directory in the store and lend its descriptor.

        NFS: opening it afresh makes this client ask again about the names in it.

        Raises:
            FileNotFoundError: there is none.
            NotADirectoryError: it is a symbolic link or a file.
        """
        try:
            fd = self.ops.open_folder(self.directory.fd, name)
        except FileNotFoundError:
            if create:
                make_within(self.ops, self.directory, name)
                self.directory.sync()
            else:
                self.directory.refresh()
            fd = self.ops.open_folder(self.directory.fd, name)
        try:
            yield fd
        finally:
            self.ops.close(fd)

    def now(self) -> float:
        """Return the filesystem's own time, in seconds: features.json is touched and its mtime read back."""
        self.ops.utime(SETTINGS, dir_fd=self.directory.fd, follow_symlinks=False)
        return self.ops.fresh_mtime(self.directory.fd, SETTINGS) or self.ops.time()
