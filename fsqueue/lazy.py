"""Import the names that a package offers when they are first asked for, and say what to install where that fails."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from fsqueue.errors import install_command


def lazily(package: str, homes: Mapping[str, str], name: str, extra_of: Mapping[str, str]) -> Any:
    """Return what a package's ``__getattr__`` is asked for.

    Args:
        homes: by name, the module in the package that has it.
        extra_of: by library, the extra that installs it.

    Raises:
        AttributeError: the package has no such name.
        ImportError: a library is not installed; it says how to.
    """
    home = homes.get(name)
    if home is None:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{package}.{home}"), name)
    except ModuleNotFoundError as error:
        extra = extra_of.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        raise ImportError(
            f"{package}.{name} needs {error.name}, which is not installed: {install_command(extra)}", name=error.name
        ) from error


@contextmanager
def needed_by(module: str, extra: str, *libraries: str) -> Iterator[None]:
    """Import libraries in a block; where one of them is missing, say which extra of this distribution installs it.

    Raises:
        ModuleNotFoundError: a library is not installed; it says how to.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in libraries:
            raise
        raise ModuleNotFoundError(
            f"{module} needs {error.name}, which is not installed: {install_command(extra)}", name=error.name
        ) from error
