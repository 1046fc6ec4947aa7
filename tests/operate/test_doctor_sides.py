"""`fsqueue doctor --peer` and `--second-mount`: on mounts that keep the promises, on real ones that weaken them, and on
peers that lie."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fsqueue.operate.doctor import diagnosis
from fsqueue.operate.doctor.clocks import Clocks
from fsqueue.operate.doctor.diagnosis import Effort
from fsqueue.operate.doctor.peer import PeerError
from fsqueue.operate.doctor.sides import verify as verifying
from fsqueue.operate.doctor.sides.sides import Options
from fsqueue.operate.doctor.sides.verdict import Verdict
from fsqueue.operate.doctor.sides.verify import CHECKS, Report, verify

command = importlib.import_module("fsqueue.cli.doctor")
SMALL = Options(refs=20, files=60, rounds=5, stale_limit_s=8.0)
PROMISES = {
    "flock excludes", "the lock keeps the order fresh", "a rename decides a race", "O_EXCL decides a race",
    "a rename back does what it says", "a new name is seen", "a name that is gone is gone", "a heartbeat is seen",
    "one clock stamps", "refs come in order", "an id is queued once", "nothing is lost or stuck",
    "a ref is leased to one", "an ack is accepted once", "a put is counted at once", "a waiting get wakes up",
    "leases expire", "a late ack is fenced off", "a heartbeat keeps leases", "a dead one's refs come again",
}  # fmt: skip


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """The directory to verify."""
    (tmp_path / "shared").mkdir()
    return tmp_path / "shared"


def tried(directory: Path, **arguments: Any) -> dict[str, Verdict]:
    """Verify with little effort; the verdicts by their promises."""
    report = verify(str(directory), options=arguments.pop("options", SMALL), **arguments)
    assert list(directory.iterdir()) == [], "something was left behind"
    return {verdict.promise: verdict for verdict in report.verdicts}


def lying_python(directory: Path, lie: str) -> str:
    """Return a stand-in for the peer's Python whose file operations are patched before it serves."""
    program = directory / "lie.py"
    program.write_text(
        f"import errno, os\nfrom fsqueue.disk.fileops import FileOps\n{lie}\n"
        "from fsqueue.operate.doctor import peer_tasks\nfrom fsqueue.operate.doctor.sides import tasks\n"
        "peer_tasks.serve(tasks.TASKS)\n"
    )
    python = directory / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{program}"\n')
    python.chmod(0o755)
    return str(python)


def test_two_processes_on_a_local_disk_keep_every_promise(shared: Path) -> None:
    seen = tried(shared)
    assert {promise: verdict.judgement for promise, verdict in seen.items()} == dict.fromkeys(PROMISES, "holds")
    assert seen["nothing is lost or stuck"].figures["put"] == 40


@pytest.mark.parametrize("program", ["bindfs", "unionfs"])
def test_two_mounts_of_one_directory_weaken_what_a_lock_orders_and_lose_nothing(
    program: str, two_mounts: Any, tmp_path: Path
) -> None:
    a, b = two_mounts(program)
    seen = tried(a, second_mount=str(b))
    assert set(seen) >= {"flock excludes", "nothing is lost or stuck"}
    assert seen["flock excludes"].judgement == "weaker" and seen["flock excludes"].weakens == ("order", "deduplication")
    assert seen["the lock keeps the order fresh"].judgement == "measured"
    for promise in ("a rename decides a race", "nothing is lost or stuck", "a ref is leased to one", "leases expire"):
        assert not seen[promise].broken, seen[promise]


@pytest.fixture
def two_mounts(tmp_path: Path) -> Iterator[Any]:
    """A function that mounts one store twice by a program, and gives a directory in it through both."""
    points = [tmp_path / "a", tmp_path / "b"]
    store = tmp_path / "store"
    for path in (store, *points):
        path.mkdir()

    def mount(program: str) -> list[Path]:
        if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
            pytest.skip("mounting by FUSE takes root and /dev/fuse")
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")
        source = f"{store}=RW" if program == "unionfs" else str(store)
        for point in points:
            if subprocess.run([program, source, str(point)], check=False, capture_output=True).returncode:
                pytest.skip("this root may not mount by FUSE")
        (points[0] / "shared").mkdir()
        return [point / "shared" for point in points]

    yield mount
    for point in points:
        subprocess.run(["umount", "-l", str(point)], check=False, capture_output=True)


def test_a_second_mount_of_something_else_is_refused(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fsqueue.operate.doctor.sides.sides._APPEAR_S", 0.0)
    (tmp_path / "other").mkdir()
    with pytest.raises(PeerError, match="is it the same filesystem"):
        verify(str(shared), second_mount=str(tmp_path / "other"))
    assert list(shared.iterdir()) == []


class TestLies:
    """A peer, started by a command as on another node, whose file operations lie."""

    @pytest.fixture
    def lied(self, shared: Path, tmp_path: Path) -> Any:
        """A function that verifies with a peer that tells one lie."""

        def run(lie: str, *checks: str, **options: Any) -> dict[str, Verdict]:
            python = lying_python(tmp_path, lie)
            return tried(shared, peer="sh -c", peer_python=python, checks=checks, **options)

        return run

    def test_a_flock_that_does_not_exclude_weakens_order_and_loses_nothing(self, lied: Any) -> None:
        lie = "FileOps.lock = FileOps.unlock = staticmethod(lambda fd: True)"
        seen = lied(lie, "lock", "torture")
        assert seen["flock excludes"].judgement == "weaker" and seen["flock excludes"].figures["overlaps"] > 0
        assert not seen["nothing is lost or stuck"].broken and not seen["a ref is leased to one"].broken

    def test_a_missing_flock_is_named_and_the_queues_run_without(self, lied: Any) -> None:
        lie = "def lock(fd): raise OSError(errno.ENOLCK, 'none')\nFileOps.lock = staticmethod(lock)"
        seen = lied(lie, "lock", "torture")
        assert seen["flock excludes"].judgement == "weaker" and seen["flock excludes"].figures == {"error": "ENOLCK"}
        assert not seen["nothing is lost or stuck"].broken

    def test_old_content_under_a_lock_that_excludes_is_another_verdict(self, lied: Any) -> None:
        lie = (
            "kept = {}\nreal = FileOps.pread\n"
            "def old(fd, size, offset):\n"
            "    data = real(fd, size, offset)\n    return kept.setdefault(fd, data) if len(data) == 20 else data\n"
            "FileOps.pread = staticmethod(old)"
        )
        seen = lied(lie, "lock")
        assert seen["flock excludes"].judgement == "holds"
        fresh = seen["the lock keeps the order fresh"]
        assert fresh.judgement == "weaker" and fresh.figures["kept_descriptor_lost"] > 0

    def test_a_rename_that_both_sides_win_is_broken(self, lied: Any) -> None:
        assert lied("FileOps.rename = staticmethod(os.link)", "rename")["a rename decides a race"].broken

    def test_a_loser_who_hears_another_error_is_lived_with(self, lied: Any) -> None:
        lie = (
            "def rename(*names, **where):\n    try: os.rename(*names, **where)\n"
            "    except FileNotFoundError: raise OSError(errno.EIO, 'lost') from None\n"
            "FileOps.rename = staticmethod(rename)"
        )
        verdict = lied(lie, "rename")["a rename decides a race"]
        assert verdict.judgement == "lives with it" and verdict.figures["heard"]["EIO"] > 0

    @pytest.mark.parametrize(
        ("lie", "judgement"),
        [
            ("os.path.basename(new) in known", "lives with it"),
            ("'to-there' in str(old)", "broken"),
        ],
    )
    def test_a_rename_that_succeeds_and_does_nothing_is_noticed_and_got_round(
        self, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lie: str, judgement: str
    ) -> None:
        python = lying_python(
            tmp_path,
            "known = set()\n"
            "def rename(old, new, **where):\n"
            f"    if {lie}: return\n"
            "    known.add(os.path.basename(new))\n    os.rename(old, new, **where)\n"
            "FileOps.rename = staticmethod(rename)",
        )
        monkeypatch.setattr("fsqueue.operate.doctor.peer.local_command", lambda module: [python])
        seen = tried(shared, peer="sh -c", peer_python=sys.executable, checks=["return"])
        verdict = seen["a rename back does what it says"]
        assert verdict.judgement == judgement
        assert verdict.figures["did_nothing"] == verdict.figures["rounds"] == 5

    def test_old_stamps_are_seen_to_be_old(self, lied: Any) -> None:
        lie = "old = {}\nnew = FileOps.fstat\nFileOps.fstat = staticmethod(lambda fd: old.setdefault('first', new(fd)))"
        assert lied(lie, "stamps", options=Options(rounds=3, stale_limit_s=0.5))["a heartbeat is seen"].broken

    def test_two_winners_of_an_exclusive_creation_matter_to_one_lock_mode_only(self, lied: Any) -> None:
        lie = (
            "real = os.open\n"
            "FileOps.open = staticmethod(lambda name, flags, *rest, **where: "
            "real(name, flags & ~os.O_EXCL, *rest, **where))"
        )
        many = 1_000  # so that two processes meet in some, however busy the machine is
        found = lied(lie, "create", options=Options(files=many))["O_EXCL decides a race"]
        assert found.judgement == "lives with it"
        verdict = lied(lie, "create", options=Options(lock="lease", files=many))["O_EXCL decides a race"]
        assert verdict.judgement == "weaker"

    def test_a_peer_that_dies_in_one_check_is_started_anew_for_the_next(self, lied: Any) -> None:
        lie = "def link(*names, **where): os._exit(9)\nFileOps.utime = staticmethod(link)"
        seen = lied(lie, "clock", "rename")
        assert seen["one clock stamps"].broken
        assert "could not be tried" in seen["one clock stamps"].text
        assert seen["a rename decides a race"].judgement == "holds"

    def test_an_error_of_one_check_is_its_verdict_and_the_others_go_on(self, lied: Any) -> None:
        lie = "def utime(*names, **where): raise OSError(errno.EIO, 'broken')\nFileOps.utime = staticmethod(utime)"
        seen = lied(lie, "clock", "rename", "create")
        assert seen["one clock stamps"].broken
        assert seen["a rename decides a race"].judgement == seen["O_EXCL decides a race"].judgement == "holds"

    def test_what_a_login_prints_is_no_answer(self, shared: Path, tmp_path: Path) -> None:
        python = tmp_path / "greeting"
        python.write_text(f'#!/bin/sh\necho "Welcome to node2"\necho 42\nexec "{sys.executable}" "$@"\n')
        python.chmod(0o755)
        seen = tried(shared, peer="sh -c", peer_python=str(python), checks=["rename"])
        assert seen["a rename decides a race"].judgement == "holds"


class TestClocks:
    def test_visits_are_compared_in_one_time(self) -> None:
        apart = Clocks((0.0, 100.0), 0.0)
        assert apart.overlaps([[(1.0, 2.0)], [(101.5, 102.5)]]) == 1
        assert apart.overlaps([[(1.0, 2.0)], [(102.0, 103.0)], []][:2]) == 0

    def test_an_overlap_within_the_doubt_is_none(self) -> None:
        assert Clocks((0.0, 0.0), 0.2).overlaps([[(1.0, 2.0)], [(1.9, 3.0)]]) == 0

    def test_one_side_never_overlaps_itself(self) -> None:
        assert Clocks((0.0, 0.0), 0.0).overlaps([[(1.0, 5.0), (2.0, 3.0)], []]) == 0


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command with little effort."""
    monkeypatch.setattr(verifying, "Options", lambda: SMALL)
    effort = Effort(processes=2, files=40, lock_rounds=40, cost_budget_s=0.01)
    monkeypatch.setattr(diagnosis, "Effort", lambda: effort)


@pytest.mark.usefixtures("small")
class TestCommand:
    def run(self, *arguments: str) -> Any:
        return CliRunner().invoke(command.doctor, list(arguments))

    def test_a_peer_command_stands_for_a_second_node(self, shared: Path) -> None:
        result = self.run(str(shared), "--peer", "sh -c", "--only", "rename,once")
        assert result.exit_code == 0, result.output
        tail = result.stdout.partition("between two sides")[2].splitlines()
        assert tail[1].startswith("  A: ") and tail[2].startswith("  B: ")
        assert tail[3].startswith("  holds  a rename decides a race") and tail[4].startswith("  holds  an id is queued")
        assert tail[-1] == "fit: a queue's promises hold between the two sides"

    @pytest.mark.parametrize("arguments", [["shared", "--second-mount", "./shared"], ["--second-mount", "../q/shared"]])
    def test_relative_paths_are_the_current_directory_s_in_every_process(
        self, shared: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
    ) -> None:
        monkeypatch.chdir(shared.parent if len(arguments) == 3 else shared)
        monkeypatch.delenv("FSQUEUE_DIR", raising=False)
        arguments = [each.replace("../q", f"../../{shared.parent.name}") for each in arguments]
        result = self.run(*arguments, "--only", "rename,torture")
        assert result.exit_code == 0 and "NOT FIT" not in result.stdout, result.output
        assert list(shared.iterdir()) == []

    def test_json_has_the_verdicts_under_stable_keys(self, shared: Path) -> None:
        result = self.run(str(shared), "--second-mount", str(shared), "--only", "create", "--json")
        two = json.loads(result.stdout)["two_sides"]
        assert result.exit_code == 0 and set(two) == {"holds", "judgement", "weakens", "sides", "verdicts"}
        assert two["holds"] and two["weakens"] == [] and set(two["sides"]) == {"A", "B"}
        assert two["verdicts"][0].keys() == {"promise", "judgement", "text", "figures", "weakens"}

    def test_a_broken_promise_exits_with_1(self, shared: Path, tmp_path: Path) -> None:
        python = lying_python(tmp_path, "FileOps.rename = staticmethod(os.link)")
        result = self.run(str(shared), "--peer", "sh -c", "--peer-python", python, "--only", "rename")
        assert result.exit_code == 1 and "  BROKEN a rename decides a race" in result.stdout
        assert result.stdout.rstrip().endswith("NOT FIT for a queue of two sides: a rename decides a race")

    def test_a_peer_that_cannot_start_says_what_is_missing(self, shared: Path) -> None:
        result = self.run(str(shared), "--peer", "sh -c", "--peer-python", "/nonexistent/python")
        assert result.exit_code == 1 and "--peer-python" in result.output
        assert list(shared.iterdir()) == []

    @pytest.mark.parametrize(
        "arguments", [["--peer", "sh -c", "--only", "everything"], ["--only", "lock"], ["--peer-python", "python3"]]
    )
    def test_bad_arguments_are_usage_errors(self, shared: Path, arguments: list[str]) -> None:
        assert self.run(str(shared), *arguments).exit_code == 2


def test_a_report_is_as_good_as_its_gravest_verdict() -> None:
    report = Report(verdicts=[Verdict("a", "lives with it", ""), Verdict("b", "weaker", "", weakens=("order",))])
    assert report.holds and report.judgement == "weaker" and report.weakens == ["order"]
    report.verdicts.append(Verdict("c", "broken", ""))
    assert not report.holds and report.judgement == "broken" and len(CHECKS) == 15
