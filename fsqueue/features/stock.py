"""Say which samples a store has features of, for whoever only looks: no torch, and nothing is created."""

from __future__ import annotations

import os

from fsqueue.disk.fileops import current, explained
from fsqueue.disk.publish import absolute
from fsqueue.features import address
from fsqueue.features.errors import FeatureStoreError
from fsqueue.features.root import SETTINGS, StoreRoot


def stems_stored(path: str | os.PathLike[str]) -> set[str]:
    """Return the stems of all samples whose features can be read, released ones as well; by one listing a folder.

    Raises:
        FeatureStoreError: there is no store at this path.
        QueueIOError: this user cannot read it.
    """
    root_path, ops = absolute(path), current()
    if not os.path.exists(os.path.join(root_path, SETTINGS)):
        what = "is no feature store" if os.path.isdir(root_path) else "does not exist"
        raise FeatureStoreError(root_path, f"{what}: there is no {SETTINGS} in it; name the store of this run")
    stems: set[str] = set()
    with explained("reading feature store", root_path):
        root = StoreRoot(ops, root_path)
        try:
            for folder in filter(address.is_folder, root.directory.listing()):
                with root.folder(folder) as fd:
                    stems.update(found[0] for found in map(address.parse_file, ops.listdir(fd)) if found)
        finally:
            root.close()
    return stems
