"""A feature store's directory: creating it, opening it, and the settings in its features.json."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from fsqueue.disk.directory import Directory
from fsqueue.disk.fileops import FileOps
from fsqueue.disk.publish import make_directory, publish_once
from fsqueue.errors import CorruptRefError
from fsqueue.features.errors import FeatureStoreError

FORMAT = 1
SETTINGS = "features.json"
TMP = "tmp"


class StoreSettings(msgspec.Struct, frozen=True):
    """What features.json says.

    Attributes:
        store_id: 16 hex digits, drawn when the store was made; part of every address in it.
    """

    format: int
    store_id: str
    created_at: float


class StoreRoot:
    """An existing store's settings and root directory."""

    def __init__(self, ops: FileOps, directory: Directory, settings: StoreSettings) -> None:
        self.ops = ops
        self.directory = directory
        self.settings = settings

    @contextmanager
    def folder(self, name: str, create: bool = False) -> Iterator[int]:
        """A descriptor on a directory in the store, opened afresh.

        NFS: that is what makes this client ask again about the names in it.

        Raises:
            FileNotFoundError: there is none.
            NotADirectoryError: it is a symbolic link or a file.
        """
        fd = self._open_folder(name, create)
        try:
            yield fd
        finally:
            self.ops.close(fd)

    def _open_folder(self, name: str, create: bool) -> int:
        try:
            return self.ops.open_folder(self.directory.fd, name)
        except FileNotFoundError:
            if create:
                make_directory(self.ops, os.path.join(self.directory.path, name))
                self.directory.sync()
            else:
                self.directory.refresh()
            return self.ops.open_folder(self.directory.fd, name)

    def now(self) -> float:
        """The filesystem's own time, in seconds: features.json is touched and its mtime read back."""
        self.ops.utime(SETTINGS, dir_fd=self.directory.fd, follow_symlinks=False)
        return self.ops.fresh_mtime(self.directory.fd, SETTINGS) or self.ops.time()


def open_root(ops: FileOps, path: str) -> StoreRoot:
    """Open a store, which is created where the directory is missing or empty.

    Raises:
        FeatureStoreError: the directory is not empty and no store, or one of another format.
    """
    make_directory(ops, path)
    directory = Directory(ops, path)
    try:
        settings = _read(ops, directory)
        if settings is None:
            _create(ops, directory)
            settings = _read(ops, directory)
            if settings is None:
                raise FeatureStoreError(path, f"vanished while it was created: {SETTINGS} is gone")
        return StoreRoot(ops, directory, settings)
    except BaseException:
        directory.close()
        raise


def _create(ops: FileOps, directory: Directory) -> None:
    """CRASH: before features.json is there, the directory holds an empty tmp/, which the next creator completes."""
    strangers = sorted(set(directory.listing()) - {TMP, SETTINGS})
    if strangers:
        raise FeatureStoreError(
            directory.path,
            f"is not empty and holds no {SETTINGS}, but for instance {strangers[0]!r}: choose a new directory",
        )
    make_directory(ops, os.path.join(directory.path, TMP))
    settings = StoreSettings(FORMAT, secrets.token_hex(8), ops.time())
    publish_once(ops, directory, SETTINGS, msgspec.json.encode(settings) + b"\n")


def _read(ops: FileOps, directory: Directory) -> StoreSettings | None:
    try:
        data = ops.read_file(directory.fd, SETTINGS)
        found = msgspec.json.decode(data, type=StoreSettings)
    except FileNotFoundError:
        return None
    except (CorruptRefError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FeatureStoreError(directory.path, f"has a damaged {SETTINGS} ({error}): look who wrote it") from None
    if found.format != FORMAT:
        raise FeatureStoreError(
            directory.path, f"has format {found.format}, this fsqueue reads {FORMAT}: upgrade fsqueue"
        )
    return found
