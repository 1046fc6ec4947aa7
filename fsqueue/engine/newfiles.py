"""Write new files where nobody looks for refs, before a rename publishes them.

They lie in tmp/. A client of NFS creates one file at a time in a directory, since it holds the directory's lock for as
long as the server takes to commit that; so where that takes long, the files of a batch are spread over tmp/ and a few
directories beside it, of which it works on all at once.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from fsqueue.disk.directory import Directory, located, locating
from fsqueue.disk.fileops import silently_remove
from fsqueue.disk.parallel import Overlap
from fsqueue.disk.publish import write_file, write_together
from fsqueue.engine.layout import Layout


class Written(NamedTuple):
    """Name a file that is not published yet."""

    directory: Directory
    name: str


class NewFiles:
    """Write new files on behalf of one handle.

    Args:
        names: names of this handle's own.
    """

    def __init__(self, layout: Layout, names: Iterator[str], durable: bool, overlap: Overlap) -> None:
        self._layout = layout
        self._ops = layout.ops
        self._names = names
        self._durable = durable
        self._overlap = overlap
        self._syncs = overlap.syncs if durable else None
        self._beside: list[Directory] | None = None  # tmp/, where this user may create files

    def write(self, contents: Mapping[str, bytes]) -> dict[str, Written]:
        """Write files and make them durable; return where each lies, by its key. On an error none is left."""
        tmp = self._layout.tmp
        places = itertools.cycle([tmp, *self._others(len(contents))])
        found = dict(zip(contents, map(Written, places, self._names), strict=False))
        try:
            if self._layout.remote:
                named = list(zip(found.values(), contents.values(), strict=True))
                write = self._overlap.ahead("write", self._write_one, named)
                for each in named:
                    write(each)
            else:
                files = ((file.name, contents[key]) for key, file in found.items())
                write_together(self._ops, tmp, files, self._syncs)
        except BaseException as error:
            self.discard(found.values())
            located(error, tmp)
            raise
        return found

    def _others(self, count: int) -> list[Directory]:
        """Return the directories beside tmp/ over which so many files are spread."""
        if count < 2 or not self._layout.remote or not self._overlap.pays("write"):
            return []
        if self._beside is None:
            found = self._layout.more_tmp(make=True)
            # Another user may have made them, with a umask of his own.
            self._beside = [it for it in found if self._ops.access(".", os.W_OK | os.X_OK, dir_fd=it.fd)]
        return self._beside

    def _write_one(self, named: tuple[Written, bytes]) -> None:
        (directory, name), data = named
        with locating(directory):
            write_file(self._ops, directory.fd, name, data, self._durable)

    def discard(self, written: Iterable[Written]) -> None:
        """Remove files that are not to be published."""
        for directory, name in written:
            silently_remove(self._ops, directory.fd, [name])
