"""Publish a file that is written once, and that several processes may be about to write: one content survives.

A hard link has one winner among several. Where it may have two, as on SeaweedFS, each client goes on seeing its own
file under the name, for good; but of two files that are renamed to one name, all clients see the later. So there
whoever has won by a link renames a second file of the same content over it, waits until others like him must have
done so too, and goes by what is there then:

    write <name>.<pid>.<hex> into tmp/; look; link it; rename another one over it; wait; remove both; read what is there

While such a file is in tmp/, the content may still change, and whoever comes to read it for good waits as long. A
process that is stopped in the midst finds its files removed when it goes on, and has lost.
"""

from __future__ import annotations

import os
from contextlib import closing, suppress

from fsqueue.disk.directory import Directory
from fsqueue.disk.fileops import FileOps, silently_remove
from fsqueue.disk.publish import NO_LINKS, own_name, read_replaced, write_file
from fsqueue.errors import CorruptRefError

SETTLES_S = 2.0
_TMP = "tmp"


def publish_once(ops: FileOps, root: Directory, target: str, data: bytes) -> None:
    """Write a directory's settings by way of its tmp/, unless another process has done so meanwhile; durable.

    Where two may have done so, what is there once `await_creators` has returned stays.
    """
    name = own_name(ops, target)
    with closing(Directory(ops, os.path.join(root.path, _TMP), root)) as tmp:
        try:
            write_file(ops, tmp.fd, name, data, durable=True)
            if root.filesystem.creates_once:
                _link_or_rename(ops, root, tmp, name, target)
            elif not _is_published(root, target):
                _win(ops, root, tmp, name, target, data)
            root.sync()
        except OSError:
            # RACE: who was stopped for long finds its files removed by one who has waited for it, and has lost.
            if root.filesystem.creates_once or not _is_published(root, target):
                raise
        finally:
            silently_remove(ops, tmp.fd, [name])


def await_creators(ops: FileOps, root: Directory, target: str) -> bool:
    """Wait for others who are publishing a file, where several may think that they have; return if there were any.

    Their files are removed from tmp/ then: of a process that died, or that is stopped and will find that it has lost.
    """
    if root.filesystem.creates_once:
        return False
    with suppress(FileNotFoundError), closing(Directory(ops, os.path.join(root.path, _TMP), root)) as tmp:
        creators = _creators(tmp, target)
        if creators:
            ops.sleep(SETTLES_S)
            silently_remove(ops, tmp.fd, creators)
            return True
    return False


def _creators(tmp: Directory, target: str) -> list[str]:
    return [name for name in tmp.listing() if name.startswith(f"{target}.")]


def _is_published(root: Directory, target: str) -> bool:
    root.refresh()
    try:
        read_replaced(root, target)
    except FileNotFoundError:
        return False
    except CorruptRefError:
        pass
    return True


def _win(ops: FileOps, root: Directory, tmp: Directory, name: str, target: str, data: bytes) -> None:
    """Publish a file where a link may have two winners; it takes `SETTLES_S` seconds.

    RACE: whoever may still win has looked for the target before it was there, and its file was in tmp/ before that.
    """
    again = own_name(ops, target)
    try:
        write_file(ops, tmp.fd, again, data, durable=True)
        try:
            ops.link(name, target, src_dir_fd=tmp.fd, dst_dir_fd=root.fd)
        except FileExistsError:
            return
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
        ops.rename(again, target, src_dir_fd=tmp.fd, dst_dir_fd=root.fd)
        ops.sleep(SETTLES_S)
    finally:
        silently_remove(ops, tmp.fd, [again])


def _link_or_rename(ops: FileOps, root: Directory, tmp: Directory, name: str, target: str) -> None:
    try:
        ops.link(name, target, src_dir_fd=tmp.fd, dst_dir_fd=root.fd)
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        # RACE: two creators without hard links may both find no settings; the later rename replaces the earlier
        # one's, which said the same unless their arguments differ, and then the earlier handle's next open says so.
        if not ops.exists(root.fd, target):
            ops.rename(name, target, src_dir_fd=tmp.fd, dst_dir_fd=root.fd)
