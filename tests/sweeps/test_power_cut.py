"""The power fails after any file operation, and the disk is in any state that the rules allow: nothing is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sweeps.powercut.journal import Entries, Record, Synced, Truncate, Write
from tests.sweeps.powercut.scripts import SCRIPTS, record
from tests.sweeps.powercut.states import images, journalled, variants, weakest
from tests.sweeps.powercut.trial import Survey, survey
from tests.sweeps.proof import tally

SAMPLE = 40
CHOICES = 128
HANG_S = 3600


def cut(tmp_path: Path, script: str, rules: str, durable: bool, limit: int | None = None) -> Survey:
    """All states of one script: nothing is wrong with any of them, and no acknowledged ref comes back."""
    records, first = record(SCRIPTS[script], tmp_path / "real", durable)
    result = survey(records, first, rules, durable, tmp_path, limit)
    assert not result.problems, "\n".join(result.problems[:20])
    assert not durable or result.came_back == 0
    word = "durable, lost 0" if durable else "not durable, mended all"
    tally.count(f"states of the disk after a power cut, {rules}, {word}", result.distinct)
    tally.count("power cuts", result.cuts)
    return result


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_journal_keeps_what_was_durable(tmp_path: Path, script: str) -> None:
    """ext4 and XFS: no ref whose put returned is lost, and none is both done and to come, or done twice."""
    assert cut(tmp_path, script, "journalled", durable=True).twice == 0


FEW_STATES = ["create", "put_one", "put_twice", "put_known_before_it_is_synced", "pack_more", "pack_what_was_rewound"]


@pytest.mark.parametrize("script", FEW_STATES)
def test_every_entry_for_itself_keeps_what_was_durable(tmp_path: Path, script: str) -> None:
    """The weakest rules: what was not fsynced may be gone, entry by entry; no ref whose put returned is lost."""
    cut(tmp_path, script, "weakest", durable=True)


@pytest.mark.slow
@pytest.mark.timeout(HANG_S)
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_entry_for_itself_in_every_script(tmp_path: Path, script: str) -> None:
    """The same for the scripts that have more states; where a cut allows very many, for a sample of them."""
    cut(tmp_path, script, "weakest", durable=True, limit=CHOICES)


@pytest.mark.parametrize("script", ["create", "put_one", "pack_more"])
def test_without_durability_the_queue_can_be_mended(tmp_path: Path, script: str) -> None:
    """check --repair ends with a consistent queue that goes on working, whatever is gone."""
    cut(tmp_path, script, "journalled", durable=False)


@pytest.mark.slow
@pytest.mark.timeout(HANG_S)
@pytest.mark.parametrize("rules", ["journalled", "weakest"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_without_durability_every_script_can_be_mended(tmp_path: Path, script: str, rules: str) -> None:
    """The same for all scripts; of the weakest rules' states a sample, since nothing is ever certain there."""
    cut(tmp_path, script, rules, durable=False, limit=SAMPLE if rules == "weakest" else None)


FOLDER, OTHER, FILE = 1, 2, 3
MADE: list[Record] = [
    Entries(((0, "folder", FOLDER),), created=(FOLDER, True)),
    Entries(((0, "other", OTHER),), created=(OTHER, True)),
    Synced(0),
]
CREATED = Entries(((FOLDER, "new", FILE),), created=(FILE, False))
RENAMED = Entries(((FOLDER, "new", None), (OTHER, "moved", FILE)))


def places(records: list[Record], rules: str) -> set[frozenset[str]]:
    """Under which names the file may be found."""
    return {frozenset(path for path, _, node in image.files if node == FILE) for image in images(records, rules)}


def test_a_journal_loses_only_the_end() -> None:
    """A rename that was not synced happened or did not; a sync of any directory it touched makes it certain."""
    both = {frozenset({"folder/new"}), frozenset({"other/moved"})}
    assert places([*MADE, CREATED, Synced(FOLDER), RENAMED], "journalled") == both
    assert places([*MADE, CREATED, Synced(FOLDER), RENAMED, Synced(FOLDER)], "journalled") == both - {
        frozenset({"folder/new"})
    }
    assert len(list(journalled([*MADE, CREATED]))) == 2


def test_the_weakest_rules_keep_one_name_of_a_durable_file() -> None:
    """Old name, new name or both; neither only where no name was ever synced."""
    durable = places([*MADE, CREATED, Synced(FOLDER), RENAMED], "weakest")
    assert durable == {
        frozenset({"folder/new"}),
        frozenset({"other/moved"}),
        frozenset({"folder/new", "other/moved"}),
    }
    assert places([*MADE, CREATED, Synced(FOLDER), RENAMED, Synced(FOLDER)], "weakest") == {frozenset({"other/moved"})}
    assert frozenset() in places([*MADE, CREATED, RENAMED], "weakest")
    assert len(list(weakest([*MADE, CREATED, RENAMED], limit=3))) == 3


def test_what_was_not_synced_may_be_torn() -> None:
    """A write may have come through in part, at either end, or have left NULs; after a sync it is whole."""
    write = Write(FILE, 0, b"abcd")
    found = variants([CREATED, write], FILE)
    assert {b"", b"abcd", b"ab", b"abc", b"ab\0\0", b"\0\0cd", b"\0\0\0\0"} <= set(found)
    assert variants([CREATED, write, Synced(FILE)], FILE) == [b"abcd"]
    longer: list[Record] = [CREATED, write, Synced(FILE), Write(FILE, 2, b"CDEF"), Truncate(FILE, 6)]
    assert {b"abcd", b"abCDEF", b"abcDEF", b"abCd", b"abcd\0\0"} <= set(variants(longer, FILE))
