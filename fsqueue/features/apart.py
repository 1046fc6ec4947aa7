"""Take somebody else's safetensors file into a store without copying it: its tensors then lie apart.

A features file carries sample id and generation in its header. To write them into another's header would move all of
its bytes. So the file itself stays as it is, under a name that ends in its generation, and the sample's own file, which
has no tensors, says that they lie there. That one is published as any other: readers see either generation, whole.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fsqueue.disk.fileops import DIRECTORY, FileOps
from fsqueue.engine.owners import new_owner
from fsqueue.errors import CorruptRefError
from fsqueue.features import address, encoding, tensorfile
from fsqueue.features.errors import UnfitFileError
from fsqueue.features.root import TMP, StoreRoot
from fsqueue.features.tensorfile import Metadata, NotTensorsError, TensorHeader

# Another mount; or a file or directory that belongs to another user.
_NOT_MOVED = (errno.EXDEV, errno.EPERM, errno.EACCES)


class OpenFile(NamedTuple):
    """A file with tensors, open.

    Attributes:
        header: its own metadata, whatever they say, are not in it.
    """

    fd: int
    size_bytes: int
    header: TensorHeader


class Adoption:
    """The way of one file into a store.

    Args:
        content: returns an open file's bytes.
    """

    def __init__(self, root: StoreRoot, source: str, content: Callable[[OpenFile], Tensor], durable: bool) -> None:
        self._root = root
        self._content = content
        self._ops = root.ops
        self._source = source
        self._folder, self._name = os.path.split(source)
        self._durable = durable

    def move(self, sample_id: str, stem: str) -> tuple[TensorHeader, int] | None:
        """Move the file to where its generation says; None where it cannot be moved, and has to be copied.

        Returns its header, with that generation, and its size in bytes.

        It is examined once it lies in tmp/, where nobody exchanges it for another; what does not fit goes back.
        """
        ops, own = self._ops, new_owner(None, self._root.directory.path)
        with self._folder_of_source() as source_fd, self._root.folder(TMP, create=True) as tmp_fd:
            if not self._moved(source_fd, tmp_fd, own):
                return None
            try:
                with self._opened(sample_id, tmp_fd, own) as file:
                    generation = encoding.digest(file.header.tensors(self._content(file)))
                    file.header.metadata = Metadata(sample_id, generation)
                    if self._durable:
                        ops.fsync(file.fd)
                with self._root.folder(address.folder_of(stem), create=True) as folder_fd:
                    ops.rename(own, address.apart_file(stem, generation), src_dir_fd=tmp_fd, dst_dir_fd=folder_fd)
                    if self._durable:
                        ops.fsync(folder_fd)
            except BaseException:
                with suppress(OSError):  # the error that led here is the one to report
                    ops.rename(own, self._name, src_dir_fd=tmp_fd, dst_dir_fd=source_fd)
                raise
        return file.header, file.size_bytes

    def _moved(self, source_fd: int, tmp_fd: int, own: str) -> bool:
        ops = self._ops
        try:
            ops.utime(self._name, dir_fd=source_fd, follow_symlinks=False)  # gc goes by the mtime
            ops.rename(self._name, own, src_dir_fd=source_fd, dst_dir_fd=tmp_fd)
        except OSError as error:
            if error.errno in _NOT_MOVED:
                return False
            # NFS: where the name is there, which is nobody else's, a retransmitted rename was done.
            if not isinstance(error, FileNotFoundError) or not ops.exists(tmp_fd, own):
                raise
        return True

    def read(self, sample_id: str) -> dict[str, Tensor]:
        """Return the tensors of the file where it lies."""
        with self._folder_of_source() as source_fd, self._opened(sample_id, source_fd, self._name) as file:
            return file.header.tensors(self._content(file))

    def remove(self) -> None:
        """Remove the file from where it was, once its tensors were put."""
        with self._folder_of_source() as source_fd:
            self._ops.remove(source_fd, self._name)

    @contextmanager
    def _folder_of_source(self) -> Iterator[int]:
        fd = self._ops.open(self._folder, DIRECTORY)
        try:
            yield fd
        finally:
            self._ops.close_read(fd)

    @contextmanager
    def _opened(self, sample_id: str, dir_fd: int, name: str) -> Iterator[OpenFile]:
        """Open a file that somebody else wrote; what is no safetensors file is an UnfitFileError."""
        try:
            fd = self._ops.open_to_read(dir_fd, name)
            try:
                size = size_of(self._ops, fd)
                header = tensorfile.read_header(partial(self._ops.pread, fd), size, Metadata(sample_id, ""))
                yield OpenFile(fd, size, header)
            finally:
                self._ops.close_read(fd)
        except NotTensorsError as error:
            raise UnfitFileError(sample_id, self._source, str(error)) from None
        except CorruptRefError:
            raise UnfitFileError(sample_id, self._source, "is not a regular file") from None


def size_of(ops: FileOps, fd: int) -> int:
    """Return an open file's size in bytes.

    Raises:
        NotTensorsError: it is a directory, a FIFO or a device.
    """
    status = ops.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise NotTensorsError("is not a regular file")
    return status.st_size


def content_of(ops: FileOps, file: OpenFile, empty: Callable[..., Tensor] = torch.empty) -> Tensor:
    """Read an open file, as bytes (uint8), into a tensor that empty makes, given its shape and type.

    Raises:
        NotTensorsError: it has become shorter.
    """
    content = empty((file.size_bytes,), dtype=torch.uint8)
    rest, at = content.numpy().data, 0
    while count := ops.readinto(file.fd, rest[at:], at):
        at += count
    if at != file.size_bytes:
        raise NotTensorsError(f"ended at {at} of {file.size_bytes} bytes")
    return content


def named_in(ops: FileOps, folder_fd: int, name: str) -> str | None:
    """Return the name of the file where a sample's file says that its tensors lie; None where they are in it."""
    try:
        fd = ops.open_to_read(folder_fd, name)
    except (FileNotFoundError, CorruptRefError):
        return None
    try:
        metadata = tensorfile.read_header(partial(ops.pread, fd), size_of(ops, fd)).metadata
    except NotTensorsError:
        return None
    finally:
        ops.close_read(fd)
    parsed = address.parse_file(name)
    return address.apart_file(parsed[0], metadata.generation) if parsed and metadata.tensors == "apart" else None
