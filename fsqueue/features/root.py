"""The root directory of a feature store, and the settings in its features.json."""

from __future__ import annotations

import secrets
from contextlib import suppress

import msgspec

from fsqueue.disk.directory import UNREACHABLE, Directory
from fsqueue.disk.fileops import FileOps
from fsqueue.disk.mutex import Mutex
from fsqueue.disk.once import await_creators, publish_once
from fsqueue.disk.publish import make_directory, make_within, read_replaced, refusal_of, strangers_in, sync_parent
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
        self._reopening = Mutex()
        self._retired_fd = -1
        make_directory(ops, path)
        try:
            self.directory = Directory(ops, path)
        except NotADirectoryError:
            raise FeatureStoreError(path, "is a file: a feature store is a directory") from None
        try:
            self.settings = self._settled() or self._create()
        except BaseException:
            self.directory.close()
            raise

    def _create(self) -> StoreSettings:
        """CRASH: before features.json is there, the directory holds an empty tmp/, which the next creator completes."""
        if strangers := strangers_in(self.directory, {TMP, SETTINGS}):
            self.directory.refresh()  # RACE: another process has made the store since this one looked, and put features
            if found := self._settled():
                return found
            raise self._refused(refusal_of(strangers, SETTINGS))
        make_within(self.ops, self.directory, TMP)
        settings = StoreSettings(FORMAT, secrets.token_hex(8), self.ops.time())
        publish_once(self.ops, self.directory, SETTINGS, msgspec.json.encode(settings) + b"\n")
        sync_parent(self.ops, self.directory.path)
        found = self._settled(surely=True)  # another process may have been first
        if found is None:
            raise self._refused(f"vanished while it was created: {SETTINGS} is gone")
        return found

    def _settled(self, surely: bool = False) -> StoreSettings | None:
        found = self._read(self.directory, surely)
        if found is not None and await_creators(self.ops, self.directory, SETTINGS):
            found = self._read(self.directory, surely=True)
        return found

    def _read(self, directory: Directory, surely: bool = False) -> StoreSettings | None:
        try:
            found = msgspec.json.decode(read_replaced(directory, SETTINGS, surely=surely), type=StoreSettings)
        except FileNotFoundError:
            return None
        except (CorruptRefError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._refused(f"has a damaged {SETTINGS} ({error}): look who wrote it") from None
        if found.format != FORMAT:
            raise self._refused(f"has format {found.format}, this fsqueue reads {FORMAT}: upgrade fsqueue")
        return found

    def _refused(self, problem: str) -> FeatureStoreError:
        return FeatureStoreError(self.directory.path, problem)

    def reaching(self) -> _Reaching:
        """Return a block after which the store is open by its path again, where its descriptor has become useless.

        The error that says so goes on to the caller, whose next call works. Where no store is found there, as before
        the mount is back, nothing changes.

        Raises:
            FeatureStoreError: the path leads to another store.
        """
        return _Reaching(self)

    def reopen_after(self, error: OSError) -> None:
        """Open the store by its path again where this error says that it cannot be reached by its descriptor."""
        if error.errno in UNREACHABLE and self.directory.fd >= 0:
            with self._reopening, suppress(OSError):
                self._reopen()

    def _reopen(self) -> None:
        """RACE: other threads may be using the former descriptor, so it is closed the next time only."""
        now = Directory(self.ops, self.directory.path)
        try:
            found = self._read(now)
            if found and found.store_id != self.settings.store_id:
                ids = f"{found.store_id}, and this one was {self.settings.store_id}"
                raise self._refused(f"is another store now ({ids}): open it anew, or bring the former one back")
            if found:
                former, self._retired_fd = self._retired_fd, self.directory.exchange(now.exchange(-1))
                now.exchange(former)
        finally:
            now.close()

    def close(self) -> None:
        with self._reopening:
            fd, self._retired_fd = self._retired_fd, -1
            if fd >= 0:
                self.ops.close_read(fd)
            self.directory.close()

    def folder(self, name: str, create: bool = False) -> _Folder:
        """Return a block that opens a directory in the store and is lent its descriptor.

        NFS: opening it afresh makes this client ask again about the names in it.

        Raises:
            FileNotFoundError: there is none.
            NotADirectoryError: it is a symbolic link or a file.
        """
        return _Folder(self, name, create)

    def open_folder(self, name: str, create: bool) -> int:
        """Open a directory in the store, and make it where it is missing if it is to be created."""
        try:
            return self.ops.open_folder(self.directory.fd, name)
        except FileNotFoundError:
            if create:
                make_within(self.ops, self.directory, name)
                self.directory.sync()
            else:
                self.directory.refresh()
            return self.ops.open_folder(self.directory.fd, name)

    def now(self) -> float:
        """Return the filesystem's own time, in seconds: features.json is touched and its mtime read back."""
        self.ops.utime(SETTINGS, dir_fd=self.directory.fd, follow_symlinks=False)
        return self.ops.fresh_mtime(self.directory.fd, SETTINGS) or self.ops.time()


class _Folder:
    """A class, as `_Reaching`: a small sample's put cannot afford generators' context managers."""

    __slots__ = ("_create", "_fd", "_name", "_root")

    def __init__(self, root: StoreRoot, name: str, create: bool) -> None:
        self._root = root
        self._name = name
        self._create = create

    def __enter__(self) -> int:
        self._fd = self._root.open_folder(self._name, self._create)
        return self._fd

    def __exit__(self, *exc_info: object) -> None:
        self._root.ops.close_read(self._fd)


class _Reaching:
    __slots__ = ("_root",)

    def __init__(self, root: StoreRoot) -> None:
        self._root = root

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            self._root.reopen_after(error)
