"""Where a benchmark ran: everything that its figures depend on, on one line."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import filelock
import msgspec


def environment(directory: str) -> dict[str, Any]:
    """Commit, versions, kernel, filesystem of the directory, CPUs; values that cannot be known are None."""
    filesystem, options = mount_of(directory)
    return {
        "commit": commit(),
        "python": platform.python_version(),
        "msgspec": msgspec.__version__,
        "filelock": filelock.__version__,
        "kernel": f"{platform.system()} {platform.release()}",
        "filesystem": filesystem,
        "mount_options": options,
        "cpus": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "cpu_model": cpu_model(),
    }


def one_line(found: dict[str, Any]) -> str:
    """The environment as the first line of the output."""
    commit_text = f"commit {found['commit'] or 'unknown'}"
    cpus = f"{found['cpus']} CPUs" + (f" ({found['cpu_model']})" if found["cpu_model"] else "")
    versions = f"Python {found['python']}, msgspec {found['msgspec']}, filelock {found['filelock']}"
    return " | ".join((commit_text, versions, found["kernel"], f"{found['filesystem'] or 'unknown'} filesystem", cpus))


def commit() -> str | None:
    """The checkout's commit, with a plus sign where files differ from it."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    try:
        head = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True
        )
        changed = subprocess.run(
            ["git", "-C", str(here), "status", "--porcelain"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def mount_of(directory: str) -> tuple[str | None, str | None]:
    """Type and options of the filesystem that a directory lies on, from /proc/mounts."""
    path = os.path.realpath(directory)
    best: tuple[int, str | None, str | None] = (-1, None, None)
    try:
        lines = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None, None
    for line in lines:
        _, point, kind, options, *_ = line.split(" ")
        point = point.replace("\\040", " ")
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= best[0]:
            best = (len(point), kind, options)
    return best[1], best[2]


def cpu_model() -> str | None:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or None
    for line in text.splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return None
