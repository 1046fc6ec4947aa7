"""Every file operation of every operation fails in every way; nothing is lost, and the handle works on."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.sweeps.proof import tally
from tests.sweeps.proof.faults import FAULTS, Fault, fail_once
from tests.sweeps.proof.operations import OPERATIONS, Operation

STRIDE = 11


def sweep(tmp_path: Path, operation: Operation, size: int, fault: Fault, places: Iterable[int], **options: Any) -> None:
    """Fail the operation's file operations at these places, until it has no more of them."""
    for at in places:
        path = tmp_path / str(at) / "queue"
        path.parent.mkdir()
        outcome = fail_once(path, operation, size, fault, at, **options)
        shutil.rmtree(path.parent)
        if outcome.call is None:
            return
        tally.count(f"faults, {'error raised' if outcome.raised else 'survived in silence'}: refs lost or doubled 0")
        if outcome.stranded:
            tally.count("faults that lied or outlasted an operator: a ref came back when its lease had expired")


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_faults_here_and_there(tmp_path: Path, operation: Operation) -> None:
    """The error is fsqueue's and names path and cause; the repeated call completes; all is delivered once.

    Every fault at every eleventh place, beginning at another place for each.
    """
    for number, fault in enumerate(FAULTS):
        path = tmp_path / str(number)
        path.mkdir()
        sweep(path, operation, 2, fault, count((number + OPERATIONS.index(operation)) % STRIDE, STRIDE))


@pytest.mark.slow
@pytest.mark.parametrize("durable", [True, False], ids=["durable", "quick"])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_every_fault_everywhere(tmp_path: Path, operation: Operation, size: int, durable: bool) -> None:
    """The same at every place."""
    for number, fault in enumerate(FAULTS):
        path = tmp_path / str(number)
        path.mkdir()
        sweep(path, operation, size, fault, count(), durable=durable)
