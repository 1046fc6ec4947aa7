"""The program: what each command prints, changes and exits with, driven as a user does."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from fsqueue import FileSampleRefQueue, SampleRef
from fsqueue.cli.main import COMMANDS
from fsqueue.disk.fileops import FILE_LIMIT_BYTES
from fsqueue.engine.owners import describe_self
from tests.support import Child, assert_clean, content, drain, lease_and_obey, lease_name, names_in, numbered, ref, refs
from tests.support.program import PROGRAM, run
from tests.support.terminal import Terminal

ELSEWHERE = "node9.4242.0a1b2c"
READING = ("status", "ls", "check")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A queue with a, b pending, one lease of another host, one done at step 7 and one dead letter."""
    with FileSampleRefQueue(tmp_path / "q", lease_timeout_s=600.0, durable=False) as queue:
        queue.put(refs("done", "dead", "held", "a", "b"))
        queue.ack(queue.get(1), step=7)
        queue.fail(queue.get(1), "no good", retryable=False)
        queue.get(1)
        (tmp_path / "q" / "leased" / lease_name(tmp_path / "q", "held")).rename(
            tmp_path / "q" / "leased" / f"held@{ELSEWHERE}.json"
        )
    record = json.loads(msgspec.json.encode(describe_self(ELSEWHERE, 0.0, None)))
    record |= {"host": "node9", "pid": 4242, "boot_id": "another"}
    (tmp_path / "q" / "owners" / f"{ELSEWHERE}.json").write_text(json.dumps(record))
    return tmp_path / "q"


def program(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """The real program in a process of its own."""
    command = [*PROGRAM, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)  # type: ignore[call-overload, no-any-return]


def snapshot(path: Path) -> dict[str, tuple[int, int]]:
    return {str(file): (file.lstat().st_ino, file.lstat().st_mtime_ns) for file in path.rglob("*")}


def lines(path: Path, *records: object) -> Path:
    """A JSON Lines file; records are refs, or text for a line as it is."""
    texts = [json.dumps(dataclasses.asdict(r)) if isinstance(r, SampleRef) else str(r) for r in records]
    path.write_text("".join(f"{text}\n" for text in texts))
    return path


# --- the program as a whole ---


def test_help_lists_every_command_with_the_short_help_of_its_own() -> None:
    text = run("--help").output
    for name, short in COMMANDS.items():
        assert f"  {name} " in text and short in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_one_example(name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0
    assert result.output.count("Example:") == 1


@pytest.mark.parametrize("name", [*READING, "show", "top"])
def test_every_reading_command_has_json(name: str) -> None:
    assert "--json" in run(name, "--help").output


@pytest.mark.parametrize("name", ["init", "put", "requeue", "rewind", "release", "purge", "check"])
def test_every_changing_command_has_a_dry_run(name: str) -> None:
    assert "--dry-run" in run(name, "--help").output


def test_importing_the_package_loads_no_command_line_and_no_terminal_library() -> None:
    check = "import sys, fsqueue; sys.exit(bool({'click', 'rich', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], timeout=60, check=False).returncode == 0


def test_help_and_status_load_no_rich_and_no_other_command(path: Path) -> None:
    check = (
        "import sys\nfrom fsqueue.cli.main import cli\n"
        f"try: cli(['status', {str(path)!r}])\nexcept SystemExit: pass\n"
        "assert 'fsqueue.cli.status' in sys.modules\n"
        "unwanted = {'rich', 'fsqueue.cli.put', 'fsqueue.operate.check', 'fsqueue.operate.doctor'}\n"
        "sys.exit(bool(unwanted & set(sys.modules)))"
    )
    assert (
        subprocess.run([sys.executable, "-c", check], stdout=subprocess.DEVNULL, timeout=60, check=False).returncode
        == 0
    )


def test_the_version_is_printed() -> None:
    assert run("--version").output.startswith("fsqueue ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["status", "--nonsense"],
        ["status"],
        ["status", "a", "-q", "b"],
        ["show"],
        ["show", "s1"],
        ["show", "q", "s1", "s2"],
        ["show", "-q", "q", "s1", "s2"],
        ["put", "q"],
        ["requeue", "q"],
        ["requeue", "q", "s1", "--failed"],
        ["release", "q"],
        ["rewind", "q"],
        ["rewind", "q", "--after-step", "-1"],
        ["purge", "q", "--state", "done"],
        ["purge", "q", "--state", "pending", "--older-than", "1d"],
        ["purge", "q", "--state", "done", "--older-than", "soon"],
        ["ls", "q", "--state", "lost"],
        ["ls", "q", "--state", "done", "--owner", "x"],
        ["ls", "q", "--limit", "-1"],
        ["top", "q", "--count", "0"],
    ],
)
def test_a_wrong_call_exits_with_2_and_says_so_on_stderr(arguments: list[str]) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Error:" in result.stderr


COMMANDS_ON_A_QUEUE = [
    ["status"],
    ["ls"],
    ["show", "s1"],
    ["put", "-"],
    ["requeue", "s1"],
    ["requeue", "--failed"],
    ["release", "--owner", "x"],
    ["purge", "--state", "done", "--older-than", "0"],
    ["pack"],
    ["check"],
    ["check", "--repair"],
    ["top", "--count", "1"],
]


@pytest.mark.parametrize("arguments", COMMANDS_ON_A_QUEUE)
@pytest.mark.parametrize("what", ["missing", "empty", "foreign", "newer", "damaged"])
def test_what_is_no_queue_exits_with_3_in_one_line_and_is_left_alone(
    tmp_path: Path, arguments: list[str], what: str
) -> None:
    directory = tmp_path / "q"
    if what != "missing":
        directory.mkdir()
    if what == "foreign":
        (directory / "thesis.tex").touch()
    if what in ("newer", "damaged"):
        (directory / "fsqueue.json").write_text('{"format": 3}' if what == "newer" else "{")
    before = snapshot(tmp_path)
    result = run(*arguments, "--queue", directory)
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.startswith("Error: queue ") and result.stderr.count("\n") == 1
    assert snapshot(tmp_path) == before


def test_an_unreadable_queue_is_an_error_in_one_line_and_no_traceback(path: Path) -> None:
    (path / "pending").rename(path / "elsewhere")
    result = run("status", path)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["status"], ["ls"], ["show", "a"], ["check"]])
def test_the_queue_may_come_as_argument_as_option_and_from_the_environment(
    path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command, *rest = arguments
    as_option = run(command, *rest, "-q", path, "--json")
    as_argument = run(command, path, *rest, "--json")
    monkeypatch.setenv("FSQUEUE_DIR", str(path))
    from_environment = run(command, *rest, "--json")
    assert as_option.exit_code == as_argument.exit_code == from_environment.exit_code == 0
    shapes = [set(map(str, json.loads(result.stdout))) for result in (as_option, as_argument, from_environment)]
    assert len(shapes[0]) == len(shapes[1]) == len(shapes[2])


def test_an_argument_goes_before_the_environment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSQUEUE_DIR", "/nowhere")
    assert run("status", path).exit_code == 0
    assert run("show", path, "a").exit_code == 0


def test_with_the_queue_in_the_environment_requeue_takes_every_argument_for_an_id(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FSQUEUE_DIR", str(path))
    assert run("requeue", "dead").exit_code == 0
    refused = run("requeue", path, "done")
    assert refused.exit_code == 2 and "--queue" in refused.stderr


def test_a_closed_pipe_ends_the_program_quietly(path: Path) -> None:
    with FileSampleRefQueue(path, durable=False) as queue:
        queue.put(numbered(2000, "x" * 100))
    command = f"{' '.join(PROGRAM)} ls {path} | head -n 1"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert (result.stdout, result.stderr) == ("a\n", "")


@pytest.mark.parametrize("arguments", [["status", "--watch", "1h"], ["top", "--interval", "1h"]])
def test_ctrl_c_exits_with_130_and_without_a_traceback(path: Path, arguments: list[str]) -> None:
    command = [*PROGRAM, arguments[0], str(path), *arguments[1:]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if arguments[0] == "top":
            process.stdout.readline()
        else:
            _wait_until_asleep(process.pid)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors


def _wait_until_asleep(pid: int) -> None:
    """Until the process is in the sleep between its two looks."""
    deadline = time.monotonic() + 60
    while b"clock_nanosleep" not in _waiting_in(pid) and time.monotonic() < deadline:
        time.sleep(0.02)


def _waiting_in(pid: int) -> bytes:
    """The system call that a process waits in: clock_nanosleep and select have numbers of their own."""
    numbers = {
        b"230": b"clock_nanosleep",
        b"270": b"clock_nanosleep",
        b"23": b"clock_nanosleep",
        b"115": b"clock_nanosleep",
    }
    try:
        return numbers.get(Path(f"/proc/{pid}/syscall").read_bytes().split()[0], b"")
    except OSError:
        return b""


# --- init ---


def test_init_creates_a_queue_with_these_settings(tmp_path: Path) -> None:
    result = run("init", tmp_path / "new" / "q", "--lease-timeout", "10m", "--lock", "none", "--run-id", "r9")
    assert (result.exit_code, result.stdout) == (0, "")
    settings = content(tmp_path / "new" / "q" / "fsqueue.json")
    assert (settings["lease_timeout_s"], settings["lock"], settings["run_id"]) == (600.0, "none", "r9")
    assert_clean(tmp_path / "new" / "q")


def test_init_again_is_fine_and_with_other_settings_an_error(path: Path) -> None:
    before = (path / "fsqueue.json").read_bytes()
    assert run("init", path).exit_code == 0
    assert run("init", path, "--lease-timeout", "600s").exit_code == 0
    differs = run("init", path, "--lease-timeout", "5s")
    assert differs.exit_code == 1 and "600" in differs.stderr
    assert run("init", path, "--lock", "none").exit_code == 1
    assert (path / "fsqueue.json").read_bytes() == before


def test_init_refuses_a_directory_with_other_things_in_it(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    for dry_run in ([], ["--dry-run"]):
        assert run("init", tmp_path, *dry_run).exit_code == 3
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_dry_init_creates_nothing(tmp_path: Path) -> None:
    assert run("init", tmp_path / "q", "--dry-run").exit_code == 0
    assert os.listdir(tmp_path) == []


# --- status, ls, show ---


def test_status_as_text(path: Path) -> None:
    text = run("status", path).stdout
    for expected in ("pending", "2", "oldest", "node9", "4242", "unknown", ELSEWHERE):
        assert expected in text


def test_status_as_json_has_stable_keys(path: Path) -> None:
    seen = json.loads(run("status", path, "--json").stdout)
    assert list(seen) == [
        "queue", "at", "run_id", "lease_timeout_s", "lock", "paused", "counts", "delayed", "oldest_pending_id",
        "oldest_pending_age_s", "oldest_pending_is_estimate", "oldest_lease_age_s", "owners", "stream", "rates",
    ]  # fmt: skip
    assert seen["counts"] == {"pending": 2, "leased": 1, "done": 1, "failed": 1}
    assert seen["oldest_pending_id"] == "a"
    assert list(seen["owners"][0]) == [
        "owner", "host", "pid", "process", "leases", "oldest_lease_age_s", "heartbeat_s", "heartbeat_age_s",
    ]  # fmt: skip


def test_status_with_watch_gives_the_rates_between_two_looks(path: Path) -> None:
    rates = json.loads(run("status", path, "--watch", "10ms", "--count", 1, "--json").stdout)["rates"]
    assert list(rates) == ["seconds", "put_per_s", "done_per_s", "failed_per_s", "pending_per_s"]
    assert rates["put_per_s"] == 0.0
    seen = run("status", path, "--watch", "10ms", "--count", 3).stdout
    assert seen.count("put 0.0/s") == seen.count("pending") / 2 == 3
    assert "--watch" in run("status", path, "--count", 3).stderr


@pytest.mark.parametrize("arguments", [["status", "--watch"], ["top", "--interval"]], ids=lambda it: it[0])
def test_two_looks_are_apart_whatever_is_asked_for(
    path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    """None at all would keep a processor and the file server busy for nothing."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    assert run(arguments[0], path, *arguments[1:], "0", "--count", 2).exit_code == 0
    assert slept and min(slept) >= 0.2


def test_status_with_watch_goes_on_until_it_is_stopped(path: Path) -> None:
    command = [*PROGRAM, "status", str(path), "--watch", "10ms"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        seen = 0
        while seen < 3:
            line = process.stdout.readline()
            assert line, "it has ended"
            seen += "put 0.0/s" in line
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=60)[1]
    assert (process.returncode, errors.strip()) == (130, "")


def test_a_command_that_is_misspelt_is_guessed() -> None:
    result = run("stauts")
    assert result.exit_code == 2 and "There is no command 'stauts': did you mean 'status'?" in result.stderr
    assert "There is no command 'zzz'." in run("zzz").stderr


def test_help_is_also_minus_h(path: Path) -> None:
    assert run("-h").stdout == run("--help").stdout and run("ls", "-h").stdout == run("ls", "--help").stdout


def test_a_shell_completes_directories(tmp_path: Path) -> None:
    """By click's own protocol, of which bash gets the kind of what is to be completed."""
    for words, kind in ((f"fsqueue status {tmp_path}/q", "dir"), ("fsqueue sta", "plain")):
        completing = {"_FSQUEUE_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        result = program(env=os.environ | completing)
        assert result.stdout.startswith(f"{kind},"), result


def test_an_id_is_found_under_any_locale(path: Path) -> None:
    with FileSampleRefQueue(path, durable=False) as queue:
        queue.put(refs("données-€"))
    posix = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    assert program("show", path, "données-€", env=os.environ | posix).returncode == 0
    result = program("requeue", path, "données-€", env=os.environ | posix)
    assert "neither in failed/ nor in done/" in result.stderr


def test_requeue_by_reason_and_from_standard_input(path: Path) -> None:
    with FileSampleRefQueue(path, durable=False) as queue:
        queue.fail(queue.get(2), "CUDA out of memory on 3", retryable=False)
    assert run("requeue", path, "--reason", "*OUT of memory*", "--dry-run").stdout == "a\nb\n"
    assert run("requeue", path, "--reason", "out of memory").stdout == ""
    assert run("requeue", path, "--reason", "cuda*").stdout == "a\nb\n"
    result = run("requeue", path, "-", stdin="dead\n\ndone\nnone\n")
    assert (result.exit_code, result.stdout) == (1, "dead\ndone\n") and "not none" in result.stderr
    assert run("requeue", path, "-", stdin="").stderr == "requeued 0 refs\n"
    assert names_in(path, "failed") == names_in(path, "done") == []


def test_put_says_what_was_in_the_queue_already(path: Path, tmp_path: Path) -> None:
    file = lines(tmp_path / "refs.jsonl", ref("new"), ref("a"), ref("held"))
    assert run("put", path, file).stderr == "put 1 ref, skipped 2 refs that the queue has already\n"
    assert run("put", path, file).stderr == "put 0 refs, skipped 3 refs that the queue has already\n"


def test_lines_with_a_byte_order_mark_are_taken(path: Path, tmp_path: Path) -> None:
    """As some editors, and spreadsheets, write them."""
    file = lines(tmp_path / "refs.jsonl", ref("new1"), ref("new2"))
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert run("put", path, file).exit_code == 0 and run("put", path, "-", stdin=file.read_bytes()).exit_code == 0
    assert {"new1.json", "new2.json"} <= set(names_in(path, "pending"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "a\nb\n"),
        (["--limit", "1"], "a\n"),
        (["--limit", "0"], ""),
        (["--state", "leased"], "held\n"),
        (["--owner", ELSEWHERE], "held\n"),
        (["--owner", "node9"], "held\n"),
        (["--owner", "node8"], ""),
        (["--state", "done"], "done\n"),
        (["--state", "failed"], "dead\n"),
        (["--state", "all"], "a\nb\nheld\ndone\ndead\n"),
    ],
)
def test_ls_prints_ids_one_a_line(path: Path, arguments: list[str], expected: str) -> None:
    assert run("ls", path, *arguments).stdout == expected


def test_ls_long_shows_owner_step_attempts_and_reason(path: Path) -> None:
    text = run("ls", path, "--state", "all", "--long").stdout
    for expected in (ELSEWHERE, "step 7", "no good", "STATE"):
        assert expected in text


def test_ls_as_json_has_stable_keys(path: Path) -> None:
    keys = ["state", "id", "path", "owner", "step", "age_s", "size_bytes", "attempts", "reason", "due_in_s"]
    for details in ([], ["--long"]):
        found = json.loads(run("ls", path, "--state", "all", "--json", *details).stdout)
        assert [list(entry) for entry in found] == [keys] * 5
    assert [entry["attempts"] for entry in found] == [0, 0, 0, 0, 1]
    assert json.loads(run("ls", path, "--owner", "nobody", "--json").stdout) == []


def test_ids_cannot_send_commands_to_the_terminal(path: Path) -> None:
    with FileSampleRefQueue(path, durable=False) as queue:
        queue.put(refs("\x1b[2Jgone", "line\nfeed"))
    for arguments in (["ls", path], ["ls", path, "--long"], ["show", path, "\x1b[2Jgone"], ["status", path]):
        assert "\x1b" not in run(*arguments).stdout
    assert '"line\\nfeed"' in run("ls", path).stdout


def test_show_as_text_and_json(path: Path) -> None:
    text = run("show", path, "dead").stdout
    for expected in ("failed", "reason: no good", "attempts: 1", '"sample_id": "dead"'):
        assert expected in text
    (found,) = json.loads(run("show", path, "held", "--json").stdout)
    assert list(found) == [
        "state", "path", "sample_id", "owner", "step", "age_s", "attempts", "expiries", "reason", "history", "ref",
        "problem",
    ]  # fmt: skip
    assert (found["state"], found["owner"]["owner"]) == ("leased", ELSEWHERE)


def test_show_of_an_unknown_id_exits_with_1_and_may_guess(path: Path) -> None:
    assert run("show", path, "nope").exit_code == 1
    guess = run("show", path, "pending/a.json", "--json")
    assert (guess.exit_code, json.loads(guess.stdout)) == (1, [])
    assert "did you mean a?" in guess.stderr


@pytest.mark.parametrize("arguments", [["status"], ["ls", "--state", "all", "--long"], ["show", "a"], ["check"]])
def test_reading_commands_change_nothing(path: Path, arguments: list[str]) -> None:
    before = snapshot(path)
    run(arguments[0], path, *arguments[1:])
    assert snapshot(path) == before


# --- put ---


def test_put_adds_the_refs_of_a_file_in_its_order(path: Path, tmp_path: Path) -> None:
    result = run("put", path, lines(tmp_path / "in", *numbered(1000)))
    assert (result.exit_code, result.stdout) == (0, "")
    with FileSampleRefQueue(path, durable=False) as queue:
        assert queue.get(2000) == [*refs("a", "b"), *numbered(1000)]


def test_put_reads_standard_input(path: Path, tmp_path: Path) -> None:
    assert run("put", path, "-", stdin=lines(tmp_path / "in", ref("x")).read_bytes()).exit_code == 0
    assert "x.json" in names_in(path, "pending")


def test_put_takes_a_pipe_and_blank_lines(path: Path, tmp_path: Path) -> None:
    file = lines(tmp_path / "in", ref("x"), "", ref("y"))
    command = f"{' '.join(PROGRAM)} put {path} <(cat {file})"
    assert subprocess.run(["bash", "-c", command], capture_output=True, timeout=60, check=False).returncode == 0
    assert {"x.json", "y.json"} <= set(names_in(path, "pending"))


def test_what_lies_in_the_queue_can_be_put_into_another(path: Path, tmp_path: Path) -> None:
    FileSampleRefQueue(tmp_path / "other", durable=False).close()
    dead = json.dumps(content(path / "failed" / "dead.json"))
    assert run("put", tmp_path / "other", "-", stdin=dead).exit_code == 0
    assert "_fsqueue" not in content(tmp_path / "other" / "pending" / "dead.json")


def _with(**changes: object) -> str:
    return json.dumps(dataclasses.asdict(ref("x")) | changes)


SPEC = {"name": "hidden", "shape": [1], "dtype": "float32"}
BAD = {
    "no JSON": ("{nonsense", "$"),
    "half a line": (_with()[:50], "$"),
    "a list": ("[]", "$"),
    "a missing field": ('{"sample_id": "x"}', "$"),
    "a wrong type": (_with(num_tokens="many"), "$.num_tokens"),
    "a wrong shape": (_with(feature_specs={"hidden": SPEC | {"shape": [1, "x"]}}), "$.feature_specs[...].shape[1]"),
    "a wrong choice": (
        _with(feature_specs={"hidden": SPEC | {"target_repr": "x"}}),
        "$.feature_specs[...].target_repr",
    ),
    "an unknown key": (_with(num_token=3), "$.num_token"),
    "an unknown key inside": (_with(feature_specs={"hidden": SPEC | {"shap": [1]}}), "$.feature_specs.hidden.shap"),
    "an empty id": (_with(sample_id=""), "$.sample_id"),
    "no Unicode": (_with(sample_id="\ud800"), "$"),
    "not a number": (_with(metadata={"loss": float("nan")}), "$"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_line_is_named_with_its_number_and_path_and_nothing_is_put(path: Path, tmp_path: Path, case: str) -> None:
    line, where = BAD[case]
    file = lines(tmp_path / "in", ref("good"), line, ref("better"))
    before = snapshot(path)
    result = run("put", path, file)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines()[0].startswith(f"{file}:2: {where}")
    assert snapshot(path) == before


def test_skip_bad_puts_the_good_lines_and_exits_with_1(path: Path, tmp_path: Path) -> None:
    file = lines(tmp_path / "in", ref("good"), "{", ref("better"), "[]")
    result = run("put", path, file, "--skip-bad", "--batch", "1")
    assert result.exit_code == 1
    assert [line.partition(": ")[0] for line in result.stderr.splitlines()[:2]] == [f"{file}:2", f"{file}:4"]
    assert {"good.json", "better.json"} <= set(names_in(path, "pending"))


def test_a_dry_put_checks_and_puts_nothing(path: Path, tmp_path: Path) -> None:
    before = snapshot(path)
    assert run("put", path, lines(tmp_path / "in", ref("x")), "--dry-run").exit_code == 0
    assert run("put", path, lines(tmp_path / "in", "{"), "--dry-run").exit_code == 1
    assert snapshot(path) == before


def test_put_of_a_file_that_is_not_there_is_an_error_in_one_line(path: Path) -> None:
    result = run("put", path, "/nowhere/refs.jsonl")
    assert result.exit_code == 1 and result.stderr.count("\n") == 1


# --- requeue, release, purge ---


def test_requeue_resets_attempts_and_reason_and_keeps_the_history(path: Path) -> None:
    result = run("requeue", path, "dead")
    assert (result.exit_code, result.stdout) == (0, "dead\n")
    book = content(path / "pending" / "dead.json")["_fsqueue"]
    assert (book.get("attempts", 0), book.get("reason")) == (0, None)
    assert [event["event"] for event in book["history"]] == ["failed", "requeued"]
    assert names_in(path, "failed") == []
    assert_clean(path)


def test_what_is_requeued_comes_last_and_equal(path: Path) -> None:
    run("requeue", path, "dead", "done")
    with FileSampleRefQueue(path, durable=False) as queue:
        assert queue.get(9) == refs("a", "b", "dead", "done")


def test_requeue_reports_what_it_could_not_move_and_moves_the_rest(path: Path) -> None:
    result = run("requeue", path, "held", "nope", "dead")
    assert (result.exit_code, result.stdout) == (1, "dead\n")
    assert "not held" in result.stderr and "not nope" in result.stderr


def test_requeue_says_what_a_dead_letter_is_that_nobody_can_read(path: Path) -> None:
    """One that is longer than any ref stays as it is, and the message says so, with both sizes."""
    with open(path / "failed" / "long.json", "wb") as file:
        file.truncate(FILE_LIMIT_BYTES + 1)
    (path / "failed" / "folder.json").mkdir()
    result = run("requeue", path, "long", "folder", "dead")
    assert (result.exit_code, result.stdout) == (1, "dead\n")
    assert f"failed/long.json is a file of {FILE_LIMIT_BYTES + 1} bytes" in result.stderr
    assert "failed/folder.json is not a regular file" in result.stderr
    assert names_in(path, "failed") == ["folder.json", "long.json"]


@pytest.mark.parametrize("state", ["pending", "leased"])
def test_requeue_leaves_an_earlier_life_alone_while_the_id_is_live(path: Path, state: str) -> None:
    with FileSampleRefQueue(path, durable=False) as queue:
        queue.put(refs("dead"))
        if state == "leased":
            queue.get(9)
        before = (path / "failed" / "dead.json").read_bytes()
        result = run("requeue", path, "dead")
        assert (result.exit_code, (path / "failed" / "dead.json").read_bytes()) == (1, before)
        assert_clean(path)


def test_requeue_failed_takes_all_dead_letters_but_those_that_hold_no_ref(path: Path) -> None:
    (path / "failed" / "torn.json").write_text('{"_fsqueue":{"reason":"it is empty","raw":""}}')
    result = run("requeue", path, "--failed")
    assert (result.exit_code, result.stdout) == (1, "dead\n")
    assert "not torn" in result.stderr
    assert names_in(path, "failed") == ["torn.json"]


@pytest.mark.parametrize(("wanted", "moved"), [(ELSEWHERE, ["x"]), ("node9", ["x"]), ("node8", [])])
def test_requeue_by_owner_takes_what_failed_under_it(path: Path, wanted: str, moved: list[str]) -> None:
    letter = dataclasses.asdict(ref("x")) | {
        "_fsqueue": {"attempts": 1, "reason": "r", "history": [{"event": "failed", "at": 1.0, "owner": ELSEWHERE}]}
    }
    (path / "failed" / "x.json").write_text(json.dumps(letter))
    assert run("requeue", path, "--owner", wanted).stdout.split() == moved
    assert "dead.json" in names_in(path, "failed")


def test_of_two_acks_the_later_one_is_requeued(path: Path) -> None:
    for step, age_s in ((8, 50.0), (9, 10.0)):
        file = path / "done" / f"x@{step}.json"
        file.write_bytes(msgspec.json.encode(ref("x")))
        os.utime(file, (time.time() - age_s,) * 2)
    run("requeue", path, "x")
    assert names_in(path, "done") == ["done@7.json", "x@8.json"]


def test_release_moves_the_leases_of_a_node_to_pending_without_counting_an_attempt(path: Path) -> None:
    result = run("release", path, "--owner", "node9")
    assert (result.exit_code, result.stdout) == (0, "held\n")
    book = content(path / "pending" / "held.json")["_fsqueue"]
    assert book.get("attempts", 0) == 0
    assert [(event["event"], event["owner"]) for event in book["history"]] == [("released", ELSEWHERE)]
    with FileSampleRefQueue(path, durable=False) as queue:
        assert sorted(drain(queue)) == ["a", "b", "held"]
    assert_clean(path)


def test_a_node_s_owners_are_found_by_the_host_in_their_records(path: Path) -> None:
    """ls, requeue and release find handles that were given names of their own, on the node where they run."""
    named = "trainer-0.4242.0a1b2c"
    record = content(path / "owners" / f"{ELSEWHERE}.json") | {"owner": named}
    (path / "owners" / f"{named}.json").write_text(json.dumps(record))
    (path / "leased" / f"held@{ELSEWHERE}.json").rename(path / "leased" / f"held@{named}.json")
    letter = dataclasses.asdict(ref("x")) | {
        "_fsqueue": {"attempts": 1, "reason": "r", "history": [{"event": "failed", "at": 1.0, "owner": named}]}
    }
    (path / "failed" / "x.json").write_text(json.dumps(letter))
    assert run("ls", path, "--owner", "node9").stdout == "held\n"
    assert run("requeue", path, "--owner", "node9").stdout == "x\n"
    assert run("release", path, "--owner", "node9").stdout == "held\n"
    assert names_in(path, "leased") == [] and run("ls", path, "--owner", "node8").stdout == ""


def test_release_of_a_process_that_runs_here_needs_force(path: Path) -> None:
    with Child(lease_and_obey, path, 2, {"durable": False}) as child:
        owner, leased = child.receive()
        before = names_in(path, "leased")
        refused = run("release", path, "--owner", owner)
        assert refused.exit_code == 1 and str(child.pid) in refused.stderr and "--force" in refused.stderr
        assert names_in(path, "leased") == before
        assert sorted(run("release", path, "--owner", owner, "--force").stdout.split()) == sorted(leased)
        child.send("ack")
        assert sorted(child.receive()) == sorted(leased), "the owner's late ack finds its leases lost"
        child.send("end")
        child.join()


def test_release_of_a_killed_process_needs_no_force(path: Path) -> None:
    with Child(lease_and_obey, path, 2, {"durable": False}) as child:
        owner, leased = child.receive()
        child.kill()
        assert sorted(run("release", path, "--owner", owner).stdout.split()) == sorted(leased)


def test_release_of_an_unknown_owner_is_an_error(path: Path) -> None:
    assert run("release", path, "--owner", "nobody").exit_code == 1


def test_purge_removes_what_is_older_and_nothing_else(path: Path) -> None:
    for name, age_s in (("old", 3 * 86400), ("older@5", 9 * 86400), ("young", 86400)):
        (path / "done" / f"{name}.json").write_bytes(msgspec.json.encode(ref("x")))
        os.utime(path / "done" / f"{name}.json", (time.time() - age_s,) * 2)
    (path / "done" / "notes.txt").touch()
    os.utime(path / "done" / "notes.txt", (0, 0))
    result = run("purge", path, "--state", "done", "--older-than", "2d")
    assert (result.exit_code, result.stdout) == (0, "done/old.json\ndone/older@5.json\n")
    assert names_in(path, "done") == ["done@7.json", "notes.txt", "young.json"]
    assert run("purge", path, "--state", "failed", "--older-than", "0").stdout == "failed/dead.json\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["requeue", "dead", "done"],
        ["requeue", "--failed"],
        ["release", "--owner", "node9"],
        ["purge", "--state", "done", "--older-than", "0"],
        ["pack", "--older-than", "0", "--json"],
        ["check", "--repair"],
        ["init"],
    ],
)
def test_a_dry_run_tells_what_the_command_would_do_and_changes_nothing(path: Path, arguments: list[str]) -> None:
    (path / "pending" / "a.json").rename(path / "pending" / "x.json")
    before = snapshot(path)
    dry = run(*arguments, "--queue", path, "--dry-run")
    assert snapshot(path) == before
    assert dry.output
    real = run(*arguments, "--queue", path)
    if arguments[0] != "check":
        assert real.stdout == dry.stdout


# --- check ---


def test_check_of_a_clean_queue(path: Path) -> None:
    result = run("check", path)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "clean" in result.stderr
    assert json.loads(run("check", path, "--json").stdout) == []


def test_check_prints_one_line_a_violation_with_path_and_remedy_and_exits_with_1(path: Path) -> None:
    (path / "pending" / "a.json").write_text("{")
    (path / "order.lock").unlink()
    result = run("check", path)
    assert result.exit_code == 1
    damage, note = sorted(result.stdout.splitlines())
    assert damage.startswith(f"damage  {path}/pending/a.json: ") and "repair: move it to failed/" in damage
    assert note.startswith(f"note  {path}/order.lock: missing; repair: ")
    found = json.loads(run("check", path, "--json").stdout)
    assert [list(each) for each in found] == [["path", "problem", "remedy", "kind", "severity"]] * 2


def test_check_repair_mends_and_exits_with_0(path: Path) -> None:
    (path / "pending" / "a.json").write_text("{")
    assert run("check", path, "--repair").exit_code == 0
    assert run("check", path).exit_code == 0
    assert "a.json" in names_in(path, "failed")


def test_check_repair_exits_with_1_where_something_is_left_to_a_person(path: Path) -> None:
    (path / "pending" / "x.json").mkdir()
    assert run("check", path, "--repair").exit_code == 1


# --- terminals ---


def test_the_real_program_prints_data_to_stdout_and_remarks_to_stderr(path: Path) -> None:
    result = program("requeue", path, "dead")
    assert (result.returncode, result.stdout, result.stderr) == (0, "dead\n", "requeued 1 ref\n")
    assert program("status", "/nowhere").returncode == 3


@pytest.mark.parametrize(("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colour_on_a_terminal_unless_no_color_is_set(path: Path, environment: dict[str, str], coloured: bool) -> None:
    with Terminal([*PROGRAM, "status", str(path)], environment) as terminal:
        text = terminal.end()
    assert ("\x1b[1m" in text) == coloured
    assert "\x1b" not in program("status", path).stdout


def test_put_shows_a_progress_bar_on_a_terminal_only(path: Path, tmp_path: Path) -> None:
    file = lines(tmp_path / "in", *numbered(50))
    at_once = "from fsqueue.cli import main, working; working.BAR_AFTER_S = 0.0; main.main()"
    with Terminal([sys.executable, "-c", at_once, "put", str(path), str(file)]) as terminal:
        assert "checking" in terminal.end()
    assert "checking" not in program("put", path, file).stderr
