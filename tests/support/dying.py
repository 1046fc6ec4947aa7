"""A process that dies before or after its n-th file operation, whatever that is."""

from __future__ import annotations

import itertools
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fsqueue.disk.fileops import FileOps, using, wrapped


def die_at(number: int, after: bool) -> FileOps:
    """File operations of which the given one is the process's last."""
    counter = itertools.count()

    def around(name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        mine = next(counter) == number
        if mine and not after:
            os._exit(70)
        try:
            return call(*args, **kwargs)
        finally:
            if mine:
                os._exit(70)

    return wrapped(FileOps(), around)


def died(work: Callable[[Path], object], path: Path, number: int, after: bool = False) -> bool:
    """Fork, do ``work(path)``, die at one file operation, reap; False where there were not so many."""
    pid = os.fork()
    if pid == 0:
        try:
            with using(die_at(number, after)):
                work(path)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, 70), "the child failed"
    return code == 70
