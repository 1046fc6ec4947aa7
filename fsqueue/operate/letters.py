"""Read the refs in failed/ and done/ that are to be requeued."""

from __future__ import annotations

import errno
from itertools import chain

from fsqueue.disk.directory import Directory
from fsqueue.engine.layout import Layout
from fsqueue.engine.letters import letters_beside
from fsqueue.engine.listing import File, files_in, packed_in, stamp_of
from fsqueue.errors import CorruptRefError
from fsqueue.format import names
from fsqueue.format.codec import whole_id
from fsqueue.format.untyped import sight
from fsqueue.operate.operator import not_given

_LOOKS = 3


class Letter:
    """Hold a ref in failed/ or done/ that is to be requeued.

    Attributes:
        name: the file that it has, or will have once it is unpacked.
        file: the file that it is in.
        sample_id, stem: the ref's; where the file holds none, what its name says.
        why_not: says why it cannot be requeued; None where it can.
    """

    __slots__ = ("directory", "file", "name", "sample_id", "stem", "why_not")

    def __init__(self, directory: Directory, name: str, file: File | None = None) -> None:
        self.directory = directory
        self.name = name
        self.file = file.name if file else name
        self.why_not: str | None = None
        sample_id: str | None = None
        try:
            data = file.line.data if file and file.line else directory.ops.read_file(directory.fd, self.file)
            sample_id = whole_id(data)
            if sample_id is None:
                ref = sight(data)
                sample_id = ref.sample_id
                self.why_not = f"{self.where} {ref.problem}: there is no ref to requeue" if ref.problem else None
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            # The storage does not give it: that is no reason to leave the others where they are.
            self.why_not = not_given(self.where)
        if sample_id is None:
            self.stem = names.parse_ref(name) or name
            self.sample_id = names.id_of(self.stem) or self.stem
        else:
            self.stem, self.sample_id = names.stem_of(sample_id), sample_id

    @property
    def where(self) -> str:
        return f"{self.directory.path.rpartition('/')[2]}/{self.file}"


def letters_of(layout: Layout, stems: list[str]) -> dict[str, Letter]:
    """Find the dead letter of each ref, or else what was done last.

    RACE: a done file that is packed while its places are looked at is looked for again.
    """
    found = {stem: letter for stem in stems if (letter := read_letter(layout.failed, names.ref_file(stem)))}
    beside = letters_beside(layout, set(stems) - found.keys())
    found |= {stem: letter for stem, name in beside.items() if (letter := read_letter(layout.failed, name))}
    missing = set(stems) - found.keys()
    for _ in range(_LOOKS if missing else 0):
        done = _done_by_stem(layout, missing)
        found |= {stem: letter for stem, files in done.items() if (letter := _done_last(layout, files))}
        missing = done.keys() - found.keys()
        if not missing:
            break
    return found


def _done_by_stem(layout: Layout, stems: set[str]) -> dict[str, list[File]]:
    """Find where these refs are done; segments are read where there are any."""
    found: dict[str, list[File]] = {}
    for file in chain(files_in(layout, "done"), packed_in(layout)):
        if file.place.stem in stems:
            found.setdefault(file.place.stem, []).append(file)
    return found


def _done_last(layout: Layout, files: list[File]) -> Letter | None:
    """Return what was done last."""
    stamps = {file: found.mtime for file in files if (found := stamp_of(layout, file))}
    last = sorted(stamps, key=lambda file: stamps[file], reverse=True)
    return next(filter(None, (read_letter(layout.done, file.ref_name, file) for file in last)), None)


def read_letter(directory: Directory, name: str, file: File | None = None) -> Letter | None:
    try:
        return Letter(directory, name, file)
    except (FileNotFoundError, CorruptRefError):
        return None
