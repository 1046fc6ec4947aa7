"""`SharedDirFeatureStore`: one safetensors file a sample, in a directory that all nodes share.

put:      tmp/ -> <xx>/<id>.safetensors                     release:  -> <xx>/<id>@released.safetensors
get:      opens either, maps or reads it, checks it          abort, gc: unlink
adopt_file: theirs -> tmp/ -> <xx>/<id>@<generation>.safetensors, then a put of a file that names it (apart.py)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from fsqueue.disk.directory import UNREACHABLE
from fsqueue.disk.fileops import current, explained, silently_remove
from fsqueue.disk.publish import WriteAt, absolute, write_file
from fsqueue.engine import arguments
from fsqueue.engine.layout import is_remote
from fsqueue.engine.owners import new_owner
from fsqueue.errors import CorruptRefError, InvalidArgumentError
from fsqueue.features import address, apart, collect, encoding, tensorfile
from fsqueue.features.address import Address
from fsqueue.features.apart import OpenFile
from fsqueue.features.buffers import Buffers
from fsqueue.features.contract import Collected, FeatureRef, StoredFeatures, StoreHealth
from fsqueue.features.encoding import Encoder, NamesTooLongError
from fsqueue.features.errors import (
    CorruptFeatureError,
    FeatureError,
    FeatureMissingError,
    FeatureSpecError,
    ForeignFeatureError,
    StaleFeatureError,
)
from fsqueue.features.root import TMP, StoreRoot
from fsqueue.features.tensorfile import Metadata, NotTensorsError, TensorHeader
from fsqueue.format.names import stem_of

T = TypeVar("T")

_TRIES = 3
_KEPT_BYTES = 64 << 20
_EITHER = (address.SUFFIX, address.RELEASED, address.SUFFIX)  # RACE: it may be published anew in between


class SharedDirFeatureStore:
    """Features in a directory. An object may be used by threads, after a fork, and in unpickled copies.

    A generation is a digest of the content, so publishing the same tensors again leaves refs valid.

    Args:
        root: the store's directory; created where it is missing or empty.
        durable: put fsyncs, so that features survive a power cut.
        mapped: get maps files into memory instead of reading them; None maps on local filesystems. Elsewhere a file
            that another node removes under a mapping kills the process that touches it (SIGBUS).
        verify: get compares the content with its generation, which reads all of it.

    Raises:
        InvalidArgumentError: an argument is of a kind that cannot be meant.
        FeatureStoreError: the directory is not empty and no store.
        QueueIOError: the filesystem refused.
    """

    def __init__(
        self, root: str | os.PathLike[str], *, durable: bool = True, mapped: bool | None = None, verify: bool = False
    ) -> None:
        arguments.flag("durable", durable)
        arguments.flag("verify", verify)
        if mapped is not None:
            arguments.flag("mapped", mapped)
        self.root = absolute(root)
        self._durable = durable
        self._given_mapped = mapped
        self._verify = verify
        self._buffers = Buffers(_KEPT_BYTES)
        self._ops = current()
        with explained("opening feature store", self.root):
            self._store_root = StoreRoot(self._ops, self.root)
        remote = is_remote(self._ops, self.root)
        self._mapped = not remote if mapped is None else mapped
        self._piece_bytes = encoding.REMOTE_PIECE_BYTES if remote else encoding.LOCAL_PIECE_BYTES

    @property
    def store_id(self) -> str:
        return self._store_root.settings.store_id

    def put(self, sample_id: str, tensors: Mapping[str, Tensor]) -> StoredFeatures:
        """Publish a sample's features; see `FeatureStore.put`.

        Raises:
            FeatureSpecError: something is no dense tensor, or the names are too many or too long for the header of
                1 MiB; nothing was written.
            InvalidRefError: the id cannot be one.
            QueueIOError: the filesystem refused; what was there before still is.
        """
        stem = stem_of(sample_id)
        if not isinstance(tensors, Mapping):
            raise InvalidArgumentError("store.put", "a mapping of names to tensors", tensors)
        if problem := tensorfile.unsupported(tensors):
            raise FeatureSpecError(sample_id, *problem)
        try:
            file = Encoder(sample_id, tensors, self._piece_bytes)
        except NamesTooLongError as error:
            why = f"has the longest of {len(tensors)} names, and the file {error}: use fewer or shorter names"
            raise FeatureSpecError(sample_id, max(tensors, key=len, default=""), why) from None
        with explained("storing features in", self.root), self._store_root.reaching():
            self._publish(stem, file.header.metadata, fill=file.write)
        return self._described(sample_id, stem, file.header, file.size_bytes)

    def adopt_file(self, sample_id: str, path: str | os.PathLike[str]) -> StoredFeatures:
        """Make a safetensors file that somebody else wrote a sample's features; replaces older ones.

        It is moved into the store, without a copy; where it lies on another mount, or belongs to a user whose files
        may not be touched, it is read, put and removed. Whoever wrote it must be done with it. The content is read
        once, for its generation.

        CRASH: before it is a sample's, it may lie in tmp/ or under its generation alone, which gc removes.

        Raises:
            UnfitFileError: it is no whole safetensors file of tensors that a store holds; it stays where it is.
            InvalidRefError: the id cannot be one.
            QueueIOError: the filesystem refused, or there is no such file.
        """
        stem, source = stem_of(sample_id), absolute(path)
        with self._reaching("adopting features into"):
            adoption = apart.Adoption(self._store_root, source, self._content, self._durable)
            moved = adoption.move(sample_id, stem)
            if moved is None:
                stored = self.put(sample_id, adoption.read(sample_id))
                adoption.remove()
                return stored
            header, size_bytes = moved
            data = encoding.encode_apart(sample_id, header.metadata.generation)
            self._publish(stem, header.metadata, data)
            return self._described(sample_id, stem, header, size_bytes)

    def _described(self, sample_id: str, stem: str, header: TensorHeader, size_bytes: int) -> StoredFeatures:
        uri = str(Address(self.store_id, stem, header.metadata.generation))
        specs = header.specs()
        return StoredFeatures(sample_id, uri, {name: name for name in specs}, specs, size_bytes)

    def _publish(
        self, stem: str, metadata: Metadata, data: bytes = b"", fill: Callable[[WriteAt], int] | None = None
    ) -> None:
        """CRASH: before the rename there is only a file in tmp/, which gc removes."""
        ops, name = self._ops, new_owner(None, self.root)
        with self._store_root.folder(TMP, create=True) as tmp_fd:
            write_file(ops, tmp_fd, name, data, self._durable, fill)
            try:
                with self._store_root.folder(address.folder_of(stem), create=True) as folder_fd:
                    self._install(tmp_fd, name, folder_fd, stem, metadata.generation)
            except BaseException:
                silently_remove(ops, tmp_fd, [name])
                raise

    def _install(self, tmp_fd: int, name: str, folder_fd: int, stem: str, generation: str) -> None:
        ops = self._ops
        try:
            ops.rename(name, stem + address.SUFFIX, src_dir_fd=tmp_fd, dst_dir_fd=folder_fd)
        except OSError:
            # NFS: an error is a question; the generation tells whether the rename was done.
            if self._live_generation(stem) != generation:
                raise
        if self._durable:
            ops.fsync(folder_fd)
        # RACE: older released features are left to gc. Before the rename they may be the only ones; after it, the file
        # of their name may be the new ones, which somebody has released already.

    def _live_generation(self, stem: str) -> str | None:
        try:
            with self._opened(stem, stem, [stem + address.SUFFIX]) as file:
                return file.header.metadata.generation
        except (OSError, FeatureError):
            return None

    def find(self, sample_id: str) -> StoredFeatures | None:
        """Return what is stored for a sample, or None. A restarted producer need not compute it again.

        Released features count as not stored, though they can still be read: gc would remove them under a new ref.

        Raises:
            CorruptFeatureError: the file is damaged: put the features anew.
        """
        return self._reading(lambda: self._find(sample_id, stem_of(sample_id)))

    def _find(self, sample_id: str, stem: str) -> StoredFeatures:
        with self._opened(sample_id, stem, [stem + address.SUFFIX]) as file, self._holder(stem, file) as holder:
            return self._described(sample_id, stem, holder.header, holder.size_bytes)

    def get(self, ref: FeatureRef) -> dict[str, Tensor]:
        """Load the tensors that a ref names, by the names it gives them; see `FeatureStore.get`.

        They may be views of a mapped file: writing into them changes no file.

        Raises:
            FeatureMissingError: no file is there; retryable.
            StaleFeatureError: other features were published under this id since the ref was made.
            CorruptFeatureError: the file is torn or damaged.
            FeatureSpecError: a feature is lacking, or has another shape or type than the ref says.
            ForeignFeatureError: the ref's URI leads elsewhere.
            QueueIOError: the filesystem refused.
        """
        if not isinstance(getattr(ref, "feature_store_uri", None), str):
            raise InvalidArgumentError("store.get", "the ref of a sample, with its feature_store_uri", ref)
        wanted = address.parse(ref.feature_store_uri)
        if wanted is None or wanted.store_id != self.store_id:
            expected = f"features://{self.store_id}/xx/<id>{address.SUFFIX}?generation=..."
            raise ForeignFeatureError(ref.sample_id, ref.feature_store_uri, expected)
        tensors = self._reading(lambda: self._load(ref.sample_id, wanted))
        if tensors is None:
            raise FeatureMissingError(ref.sample_id, f"{address.path_of(wanted.stem)} is not there")
        found = ((name, _checked(ref, name, spec, tensors)) for name, spec in ref.feature_specs.items())
        return {name: tensor for name, tensor in found if tensor is not None}

    def _reading(self, read: Callable[[], T]) -> T | None:
        """Return what read does, or None where there is no file."""
        with explained("reading features from", self.root):
            for left in reversed(range(_TRIES)):
                try:
                    with self._store_root.reaching():
                        return read()
                except FileNotFoundError:
                    return None
                except OSError as error:
                    # NFS: another node replaced or removed the file while it was open here.
                    if error.errno not in UNREACHABLE or not left:
                        raise
        return None

    def _load(self, sample_id: str, wanted: Address) -> dict[str, Tensor]:
        with self._opened(sample_id, wanted.stem, [wanted.stem + suffix for suffix in _EITHER]) as file:
            generation = file.header.metadata.generation
            if generation != wanted.generation:
                raise StaleFeatureError(sample_id, generation, wanted.generation)
            with self._holder(wanted.stem, file) as holder:
                tensors = holder.header.tensors(self._content(holder))
                if self._verify and encoding.digest(tensors, file.header.metadata.digest) != generation:
                    raise NotTensorsError("does not have the content that its generation says")
                return tensors

    @contextmanager
    def _holder(self, stem: str, file: OpenFile) -> Iterator[OpenFile]:
        """Lend the file that holds the tensors: the sample's own, or the one that lies apart."""
        metadata = file.header.metadata
        if metadata.tensors == "here":
            yield file
            return
        name = address.apart_file(stem, metadata.generation)
        theirs = Metadata(metadata.sample_id, metadata.generation)
        with self._opened(metadata.sample_id, stem, [name], theirs) as holder:
            yield holder

    def _content(self, file: OpenFile) -> Tensor:
        """Map the file copy-on-write, or read it.

        Reading needs nothing but the open descriptor; mapping also needs a free one, /dev/fd, and a mapping to spare.
        """
        if self._mapped:
            # By the descriptor: under its path there may be another file by now. The mapping outlives it.
            with suppress(RuntimeError):  # torch's word for whatever the system refuses
                return torch.from_file(f"/dev/fd/{file.fd}", shared=False, size=file.size_bytes, dtype=torch.uint8)
        return apart.content_of(self._ops, file, self._buffers.empty)

    @contextmanager
    def _opened(
        self, sample_id: str, stem: str, names: list[str], metadata: Metadata | None = None
    ) -> Iterator[OpenFile]:
        """Open the first of these files of a stem and read its header; what is none is a CorruptFeatureError."""
        path = f"{address.folder_of(stem)}/{names[0]}"
        try:
            with self._store_root.folder(address.folder_of(stem)) as folder_fd:
                fd = self._open_first(folder_fd, names)
            try:
                size = apart.size_of(self._ops, fd)
                yield OpenFile(fd, size, tensorfile.read_header(partial(self._ops.pread, fd), size, metadata))
            finally:
                self._ops.close_read(fd)
        except NotTensorsError as error:
            raise CorruptFeatureError(sample_id, path, str(error)) from None
        except (CorruptRefError, NotADirectoryError):
            raise CorruptFeatureError(sample_id, path, "is not a regular file") from None

    def _open_first(self, folder_fd: int, file_names: list[str]) -> int:
        for name in file_names[:-1]:
            with suppress(FileNotFoundError):
                return self._ops.open_to_read(folder_fd, name)
        return self._ops.open_to_read(folder_fd, file_names[-1])

    def release(self, sample_id: str) -> None:
        """Say that the features were used: they can be read until gc removes them; see `FeatureStore.release`."""

        def rename(fd: int, live: str, released: str) -> None:
            self._ops.utime(live, dir_fd=fd, follow_symlinks=False)  # gc goes by the mtime, which a rename keeps
            self._ops.rename(live, released, src_dir_fd=fd, dst_dir_fd=fd)

        self._change("releasing features in", sample_id, rename)

    def abort(self, sample_id: str, *, reason: str | None = None) -> None:
        """Remove the features now, released or not; reason is accepted for the callers' sake."""

        def remove(fd: int, *names: str) -> None:
            for name in names:
                named = apart.named_in(self._ops, fd, name)
                self._ops.remove(fd, name)
                if named is not None:
                    self._ops.remove(fd, named)

        self._change("removing features from", sample_id, remove)

    def _change(self, what: str, sample_id: str, change: Callable[[int, str, str], None]) -> None:
        """Change a sample's live or released file; where the features are gone, there is nothing to change."""
        stem = stem_of(sample_id)
        folder = self._store_root.folder(address.folder_of(stem))
        with self._reaching(what), suppress(FileNotFoundError), folder as fd:
            change(fd, stem + address.SUFFIX, stem + address.RELEASED)

    def gc(self, *, released_older_than_s: float = 0.0, unfinished_older_than_s: float = 3600.0) -> Collected:
        """Remove released features, and what writers left in tmp/; see `FeatureStore.gc`.

        Ages are by the filesystem's clock. Costs one listing a folder and a stat a file. With checkpoint-aligned
        acks, call it once a checkpoint is durable: a rewind needs the features of the samples acked after it.
        """
        with self._reaching("collecting garbage in"):
            return collect.garbage(self._store_root, released_older_than_s, unfinished_older_than_s)

    def health(self) -> StoreHealth:
        """Count what the store holds; costs one listing a folder and a stat a file."""
        with self._reaching("examining feature store"):
            return collect.health(self._store_root)

    @contextmanager
    def _reaching(self, what: str) -> Iterator[None]:
        with explained(what, self.root), self._store_root.reaching():
            yield

    def close(self) -> None:
        """Close the store's directory; tensors that get returned stay valid."""
        self._store_root.close()

    def __enter__(self) -> SharedDirFeatureStore:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        reopen = partial(SharedDirFeatureStore, durable=self._durable, mapped=self._given_mapped, verify=self._verify)
        return reopen, (self.root,)

    def __repr__(self) -> str:
        return f"SharedDirFeatureStore({self.root!r})"


def _checked(ref: FeatureRef, name: str, spec: Any, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """Return the tensor that a ref calls name; None where it is lacking and need not be there."""
    tensor = tensors.get(ref.feature_keys.get(name, name))
    if tensor is None:
        if not spec.required:
            return None
        raise FeatureSpecError(ref.sample_id, name, f"is lacking; there are {', '.join(sorted(tensors)) or 'none'}")
    found, wanted = (tuple(tensor.shape), tensorfile.dtype_name(tensor.dtype)), (tuple(spec.shape), spec.dtype)
    if found != wanted:
        raise FeatureSpecError(
            ref.sample_id, name, f"is {found[1]}{list(found[0])}, the ref says {wanted[1]}{list(wanted[0])}"
        )
    return tensor
