"""Run the programs that make a mount: say what is missing, what went wrong, and wait until something is there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

_PATIENCE_S = 120.0
_TRY_S = 40.0
_TICK_S = 0.1
_SAID_BYTES = 1500
_OF_THIS_PYTHON = os.path.dirname(sys.executable)
_ADMIN = "/usr/local/sbin:/usr/sbin:/sbin"


class MountError(RuntimeError):
    """Say that a filesystem could not be mounted, and what its program said."""


@dataclass(frozen=True)
class Kind:
    """Describe a filesystem that can be mounted here twice.

    Attributes:
        mount: makes the mounts below a directory of its own; returns the same place as seen through both.
        programs: what has to be installed, by the names of commands.
        apt, pip: the packages that bring them.
        module: the kernel's own name of it, where it is a filesystem of the kernel.
        twice: False: there is one mount, seen through two paths.
        own_disk: it is made on a disk image of its own, not in a directory.
        cramp: leaves little room, after the checks and before the torture, in which done refs are then not kept.
    """

    name: str
    mount: Callable[[Path], tuple[Path, Path]]
    programs: tuple[str, ...] = ()
    apt: tuple[str, ...] = ()
    pip: tuple[str, ...] = ()
    module: str | None = None
    twice: bool = True
    own_disk: bool = False
    cramp: Callable[[Path], None] | None = None

    def missing(self) -> str | None:
        """Say what this machine lacks, and how to get it; None where all is there."""
        lacking = [program for program in self.programs if which(program) is None]
        if lacking:
            return f"there is no {' and no '.join(lacking)} here: {self.install()}"
        if self.module is None:
            return None if os.path.exists("/dev/fuse") else "there is no /dev/fuse here"
        kinds = Path("/proc/filesystems").read_text(encoding="ascii").split()
        return None if self.module in kinds else f"this kernel has no {self.module}: try modprobe {self.module}"

    def install(self) -> str:
        """Return the command that installs what it needs."""
        lines = []
        if self.apt:
            lines.append(f"apt-get install --no-install-recommends {' '.join(self.apt)}")
        if self.pip:
            lines.append(f"pip install {' '.join(self.pip)}")
        return " && ".join(lines) or f"Linux {os.uname().release}"

    def version(self) -> str:
        """Return the version of its first package, or of the kernel that it is part of."""
        if self.pip:
            return metadata.version(self.pip[0])
        if self.module is not None or not self.apt:
            return f"Linux {os.uname().release.partition('-')[0]}"
        asked = ["dpkg-query", "-W", "-f=${Version}", self.apt[0]]
        try:
            done = subprocess.run(asked, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return "unknown"
        return done.stdout.rpartition(":")[2].partition("-")[0].partition("+")[0] or "unknown"


def which(program: str) -> str | None:
    """Return where a program lies: on the path, among the administrator's, or beside this Python."""
    path = os.pathsep.join([_OF_THIS_PYTHON, os.environ.get("PATH", ""), _ADMIN])
    return shutil.which(program, path=path)


def run(*command: str | Path, text: str | None = None, timeout_s: float = _PATIENCE_S) -> str:
    """Run a program to its end; return what it printed.

    Raises:
        MountError: it failed, or did not end; with what it said.
    """
    line = _resolved(command)
    try:
        done = subprocess.run(
            line, input=text, stdin=None if text is not None else subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise MountError(f"{' '.join(line)} did not end within {timeout_s:g} s") from None
    if done.returncode:
        raise MountError(f"{' '.join(line)} ended with {done.returncode}: {done.stdout.strip()[-_SAID_BYTES:]}")
    return done.stdout


def serve(log: Path, *command: str | Path) -> None:
    """Start a program that goes on running until the namespace ends; what it says goes to a file."""
    with open(log, "ab") as file:
        subprocess.Popen(_resolved(command), stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True)


def until(what: str, condition: Callable[[], bool], log: Path | None = None, timeout_s: float = _PATIENCE_S) -> None:
    """Wait for something.

    Raises:
        MountError: it did not come; with the end of the log of whoever was to bring it.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            said = log.read_text(errors="replace")[-_SAID_BYTES:] if log is not None and log.exists() else ""
            raise MountError(f"{what} did not come within {timeout_s:g} s: {said}")
        time.sleep(_TICK_S)


def succeeds(*command: str | Path, text: str | None = None) -> bool:
    """Tell whether a program ends with 0, within bearable time."""
    try:
        run(*command, text=text, timeout_s=_TRY_S)
    except MountError:
        return False
    return True


def pair(work: Path) -> tuple[Path, Path]:
    """Make two mount points."""
    return made(work / "a"), made(work / "b")


def made(directory: Path) -> Path:
    """Make a directory, and return it."""
    directory.mkdir(parents=True)
    return directory


def _resolved(command: tuple[str | Path, ...]) -> list[str]:
    first, *others = map(str, command)
    return [which(first) or first, *others]
