"""Name a sample's features in file names and URIs: pure functions, no I/O.

    features://<store id>/<xx>/<stem>.safetensors?generation=<generation>

The path is the file's, relative to the store's directory, so that nodes may mount it at different places. Stems
are those of sample ids (`fsqueue.format.names`), so no address leads out of the store; ``<xx>`` is the first two hex
digits of the stem's SHA-256. Tensors that lie apart from their sample's file are in ``<id>@<generation>.safetensors``.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import NamedTuple

from fsqueue.format.names import is_stem

SUFFIX = ".safetensors"
RELEASED = "@released" + SUFFIX
GENERATION_DIGITS = 32

_split = re.compile(
    rf"features://([0-9a-f]{{16}})/([0-9a-f]{{2}})/([^/@?#]+){re.escape(SUFFIX)}"
    rf"\?generation=([0-9a-f]{{{GENERATION_DIGITS}}})\Z"
).match
is_folder = re.compile(r"[0-9a-f]{2}\Z").match
is_generation = re.compile(rf"[0-9a-f]{{{GENERATION_DIGITS}}}\Z").match


class Address(NamedTuple):
    """One generation of one sample's features in one store."""

    store_id: str
    stem: str
    generation: str

    def __str__(self) -> str:
        return f"features://{self.store_id}/{path_of(self.stem)}?generation={self.generation}"


def parse(uri: str) -> Address | None:
    """Return the address in a URI; None where it is not written exactly as `Address` writes it."""
    match = _split(uri)
    if match is None:
        return None
    store_id, folder, stem, generation = match.groups()
    return Address(store_id, stem, generation) if is_stem(stem) and folder == folder_of(stem) else None


@lru_cache(maxsize=64)  # each call of a store asks for one stem's several times
def folder_of(stem: str) -> str:
    return hashlib.sha256(stem.encode()).hexdigest()[:2]


def path_of(stem: str) -> str:
    """Return the live file's path, relative to the store's directory."""
    return f"{folder_of(stem)}/{stem}{SUFFIX}"


def apart_file(stem: str, generation: str) -> str:
    """Return the name of the file that holds a generation's tensors, where the sample's own file does not."""
    return f"{stem}@{generation}{SUFFIX}"


def parse_apart(name: str) -> tuple[str, str] | None:
    """Return the stem and the generation in the name of a file with tensors alone; None for other names."""
    stem, _, generation = name.removesuffix(SUFFIX).rpartition("@")
    return (stem, generation) if name.endswith(SUFFIX) and is_stem(stem) and is_generation(generation) else None


def parse_file(name: str) -> tuple[str, bool] | None:
    """Return the stem in a file name, and if the features are released; None for other names."""
    for suffix, released in ((RELEASED, True), (SUFFIX, False)):
        if name.endswith(suffix) and is_stem(name[: -len(suffix)]):
            return name[: -len(suffix)], released
    return None
