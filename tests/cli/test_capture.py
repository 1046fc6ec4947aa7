"""`fsqueue capture`: a run from the shell, what it says, and that it goes on wherever it was killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("urllib3")

from fsqueue import FileSampleRefQueue
from fsqueue.features import SharedDirFeatureStore
from tests.support import ROOT, assert_clean, drain, ids, names_in, wait_until
from tests.support.inference import FakeSglang, FakeVllm
from tests.support.program import PROGRAM, run
from tests.support.terminal import Terminal


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a queue, a directory for a connector, and twenty prompts."""
    with FileSampleRefQueue(tmp_path / "q", lease_timeout_s=60):
        pass
    (tmp_path / "states").mkdir()
    write_prompts(tmp_path, 20)
    return tmp_path


def write_prompts(folder: Path, count: int) -> None:
    lines = (json.dumps({"id": f"p{number:03d}", "text": f"prompt number {number}"}) for number in range(count))
    (folder / "prompts.jsonl").write_text("\n".join(lines))


@pytest.fixture
def vllm(folder: Path) -> Iterator[FakeVllm]:
    server = FakeVllm(folder / "states")
    yield server
    server.close()


def command(folder: Path, url: str, *more: str) -> list[str]:
    given = ["capture", str(folder / "q"), "--source", "vllm", "--endpoint", url, "--layers", "2,5,last"]
    given += ["--shared-dir", str(folder / "states"), "--prompts", str(folder / "prompts.jsonl")]
    return [*given, "--store", str(folder / "features"), *more]


def test_a_run_and_the_same_command_again(folder: Path, vllm: FakeVllm) -> None:
    """It says what it did, on stderr; with --json also on stdout. A second one asks for nothing."""
    done = run(*command(folder, vllm.url))
    assert done.exit_code == 0 and done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("20 prompts: 20 captured; ")
    again = run(*command(folder, vllm.url, "--json", "--quiet"))
    report = json.loads(again.stdout)
    assert again.exit_code == 0 and again.stderr == "" and len(vllm.asked) == 20
    assert (report["prompts"], report["known"], report["captured"], report["refused"]) == (20, 20, 0, 0)
    assert set(report) == {
        "prompts", "known", "found", "captured", "refused", "tokens", "stored_bytes", "seconds"
    }  # fmt: skip
    with FileSampleRefQueue(folder / "q") as queue:
        assert drain(queue) == [f"p{number:03d}" for number in range(20)]
        assert queue.drained()
    assert os.listdir(folder / "states") == []
    assert_clean(folder / "q")


def test_parts_and_a_ledger(folder: Path, vllm: FakeVllm) -> None:
    """Two runs share the file; the stream ends once both have closed."""
    for part in ("0/2", "1/2"):
        with FileSampleRefQueue(folder / "q") as queue:
            assert not queue.drained()
        more = ["--part", part, "--ledger", str(folder / "ledger"), "--run-id", "r7"]
        assert run(*command(folder, vllm.url, *more)).exit_code == 0
    assert len(names_in(folder / "q", "pending")) == 20 and len(vllm.asked) == 20
    assert {member.record.name for member in FileSampleRefQueue(folder / "q").stream().members()} == {
        "capture-0",
        "capture-1",
    }


def test_sglang(folder: Path) -> None:
    server = FakeSglang()
    given = ["capture", folder / "q", "--source", "sglang", "--endpoint", server.url, "--hidden-size", 4]
    given += ["--prompts", folder / "prompts.jsonl", "--store", folder / "features"]
    try:
        assert run(*given).exit_code == 0
    finally:
        server.close()
    with FileSampleRefQueue(folder / "q") as queue:
        (ref,) = queue.get(1)
    assert ref.target_model_version == "step-7" and ref.feature_specs["hidden_states"].dtype == "bfloat16"


def test_a_model_in_this_process(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from tests.support.tiny_target import make_tiny_target

    model = make_tiny_target(tmp_path / "model")
    given = ["capture", "--queue", folder / "q", "--source", "transformers", "--model", model, "--layers", "1,normed"]
    assert run(*given, "--prompts", folder / "prompts.jsonl", "--store", folder / "features").exit_code == 0
    with FileSampleRefQueue(folder / "q") as queue:
        (ref,) = queue.get(1)
    found = SharedDirFeatureStore(folder / "features").get(ref)
    assert found["hidden_states"].shape == (15, 2, 64) and ref.metadata["layers"] == ["1", "normed"]


def test_bad_lines_and_refused_prompts(folder: Path, vllm: FakeVllm) -> None:
    """Where a line is bad, nothing is asked for; a refused prompt ends the run, or is left out, with exit code 1."""
    vllm.failures = [(400, "too long")]
    ended = run(*command(folder, vllm.url, "--in-flight", "1"))
    assert ended.exit_code == 1 and "prompt 'p000': /v1/completions answered 400: too long" in ended.stderr
    vllm.failures = [(400, "too long")]
    skipped = run(*command(folder, vllm.url, "--in-flight", "1", "--skip-refused"))
    assert skipped.exit_code == 1 and "19 captured, 1 refused" in skipped.stderr
    asked = len(vllm.asked)
    with open(folder / "prompts.jsonl", "a") as file:
        file.write("\n{}\n")
    bad = run(*command(folder, vllm.url))
    assert bad.exit_code == 1 and "prompts.jsonl:21: expected either text or token_ids" in bad.stderr
    assert "captured nothing: 1 bad line" in bad.stderr and len(vllm.asked) == asked


def test_slips_are_told(folder: Path, vllm: FakeVllm, tmp_path: Path) -> None:
    base = ["capture", folder / "q", "--prompts", folder / "prompts.jsonl", "--store", folder / "features"]
    missing = run(*base, "--source", "vllm")
    assert missing.exit_code == 2 and "vllm needs --endpoint and --shared-dir and --layers" in missing.stderr
    assert "transformers needs --model" in run(*base, "--source", "transformers").stderr
    assert "'2/2' is no part" in run(*command(folder, vllm.url, "--part", "2/2")).stderr
    assert run("capture", tmp_path / "none", *command(folder, vllm.url)[2:]).exit_code == 3
    assert not (folder / "features").exists(), "where no share is mounted, no store is made"
    layers = run(*command(folder, vllm.url, "--layers", "2,2"))
    assert layers.exit_code == 1 and "layers expected layers, each once" in layers.stderr
    away = run(*command(folder, "http://127.0.0.1:9", "--patience", "0s"))
    assert away.exit_code == 4 and "no answer for 0 s" in away.stderr
    standing = [member.standing for member in FileSampleRefQueue(folder / "q").stream().members()]
    assert standing == ["withdrawn"], "the trainers wait for the next start"


@contextmanager
def waiting_for_room(folder: Path, url: str, *more: str) -> Iterator[subprocess.Popen[str]]:
    """Run the command until it waits at the watermark."""
    given = [*PROGRAM, *command(folder, url, *more)]
    with subprocess.Popen(given, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stderr is not None
            while "waiting for room in the queue" not in (line := process.stderr.readline()):
                assert line and "\r" not in line and "\x1b" not in line
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=str)
def test_ctrl_c_says_how_to_go_on(folder: Path, vllm: FakeVllm, number: int, code: int) -> None:
    """It ends at once though replies are under way, says how many are done, and withdraws from the stream."""
    with FileSampleRefQueue(folder / "q") as queue:
        with waiting_for_room(folder, vllm.url, "--high", "5", "--in-flight", "2") as process:
            process.send_signal(number)
            _, said = process.communicate(timeout=60)
        assert process.returncode == code, said
        done = len(names_in(folder / "q", "pending"))
        assert said.splitlines()[-1] == (
            f"interrupted: {done} of 20 prompts done; the same command goes on with the others"
        )
        assert [member.standing for member in queue.stream().members()] == ["withdrawn"]
        assert run(*command(folder, vllm.url)).exit_code == 0
        assert drain(queue) == [f"p{number:03d}" for number in range(20)]


def test_the_name_of_a_command_that_lives_is_refused(folder: Path, vllm: FakeVllm) -> None:
    """The second one touches nothing of the first one's, which goes on."""
    with waiting_for_room(folder, vllm.url, "--high", "5", "--in-flight", "2") as process:
        second = run(*command(folder, vllm.url))
        assert second.exit_code == 1 and "'capture-0'" in second.stderr
        with FileSampleRefQueue(folder / "q") as queue:
            found: list[str] = []
            while len(found) < 20:
                found += drain(queue)
        process.communicate(timeout=60)
    assert process.returncode == 0 and found == [f"p{number:03d}" for number in range(20)]
    assert os.listdir(folder / "states") == []


def test_a_progress_bar_on_a_terminal_and_lines_elsewhere(folder: Path, vllm: FakeVllm) -> None:
    with FileSampleRefQueue(folder / "q") as queue:
        with Terminal(
            [*PROGRAM, *command(folder, vllm.url, "--high", "5", "--low", "1", "--in-flight", "1")]
        ) as terminal:
            terminal.read_until(lambda text: "waiting for room" in text and "/20" in text, "the bar")
            taken: list[str] = []
            while len(taken) < 15:
                refs = queue.get(5)
                queue.ack(refs)
                taken += ids(refs)
            terminal.read_until(lambda text: "20 captured" in text, "the end")
            assert terminal.process.wait(60) == 0
        write_prompts(folder, 30)
        with waiting_for_room(folder, vllm.url, "--high", "6", "--low", "1", "--in-flight", "1") as process:
            while len(taken) < 30:
                refs = queue.get(5)
                queue.ack(refs)
                taken += ids(refs)
            _, said = process.communicate(timeout=60)
    assert "10 captured, 20 there already" in said and "\r" not in said and "\x1b" not in said
    assert process.returncode == 0 and taken == [f"p{number:03d}" for number in range(30)]


@contextmanager
def server_process(folder: Path, port: int) -> Iterator[tuple[subprocess.Popen[str], str]]:
    given = [sys.executable, "-m", "tests.support.inference", str(port), str(folder / "states"), "0.002"]
    process = subprocess.Popen(given, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def stored_in(folder: Path) -> int:
    return len(list((folder / "features").glob("??/*@*")))


def started(folder: Path, url: str, *more: str) -> subprocess.Popen[str]:
    given = command(folder, url, "--quiet", "--high", "500", *more)
    return subprocess.Popen([*PROGRAM, *given], cwd=ROOT, stderr=subprocess.PIPE, text=True)


def assert_each_once_stored(folder: Path, total: int) -> None:
    assert stored_in(folder) == total and os.listdir(folder / "states") == []
    assert_clean(folder / "q")


@pytest.mark.parametrize("ledger", [False, True])
def test_kills_of_the_command_lose_and_double_nothing(folder: Path, ledger: bool) -> None:
    """SIGKILL in the midst of it, and the same command again, while a trainer takes what there is."""
    total, taken = 80, list[str]()
    write_prompts(folder, total)
    more = ["--ledger", str(folder / "ledger")] if ledger else []
    with server_process(folder, 0) as (_, url), FileSampleRefQueue(folder / "q", owner="trainer") as queue:
        for limit in (20, 50):
            process = started(folder, url, *more)
            wait_until(lambda limit=limit: stored_in(folder) >= limit, "features")  # type: ignore[misc]
            process.kill()
            process.communicate()
            if not ledger:  # with one, a trainer acknowledges through a controller
                refs = queue.get(10)
                queue.ack(refs)
                taken += ids(refs)
        process = started(folder, url, *more)
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
        taken += drain(queue)
    assert sorted(taken) == [f"p{number:03d}" for number in range(total)]
    assert_each_once_stored(folder, total)


def test_kills_of_the_server_are_waited_out(folder: Path) -> None:
    """The command lives on while its server is killed and started again, and again."""
    total = 80
    write_prompts(folder, total)
    with server_process(folder, 0) as (server, url):
        process = started(folder, url)
        wait_until(lambda: stored_in(folder) >= 20, "features")
        server.kill()
    try:
        for limit in (45, total):
            with server_process(folder, int(url.rpartition(":")[2])) as (server, _):
                wait_until(lambda limit=limit: stored_in(folder) >= limit, "features")  # type: ignore[misc]
                server.kill()
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, said
    with FileSampleRefQueue(folder / "q") as queue:
        assert sorted(drain(queue)) == [f"p{number:03d}" for number in range(total)]
    assert_each_once_stored(folder, total)
