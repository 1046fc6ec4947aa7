"""Every file operation of every operation fails in every way; nothing is lost, and the handle works on."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest
from proof import tally
from proof.faults import FAULTS, Fault, fail_once
from proof.operations import OPERATIONS, Operation

pytest_plugins = ["proof.summary"]


def sweep(tmp_path: Path, operation: Operation, size: int, fault: Fault, step: int = 1, **options: Any) -> None:
    """Fail every step-th of the operation's file operations that the fault applies to."""
    for at in itertools.count(0, step):
        path = tmp_path / f"{size}-{at}" / "queue"
        path.parent.mkdir()
        outcome = fail_once(path, operation, size, fault, at, **options)
        shutil.rmtree(path.parent)
        if outcome.call is None:
            return
        tally.count(f"faults, {'error raised' if outcome.raised else 'survived in silence'}")
        if outcome.stranded:
            tally.count("faults after which a ref came back only when its lease had expired")


@pytest.mark.parametrize("fault", FAULTS, ids=str)
@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_a_fault_anywhere(tmp_path: Path, operation: Operation, fault: Fault) -> None:
    """The error is fsqueue's and names path and cause; the repeated call completes; all is delivered once."""
    sweep(tmp_path, operation, 2, fault)
