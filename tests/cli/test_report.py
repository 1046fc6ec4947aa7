"""`fsqueue report`: what the page says, that nothing in it is anybody's code, and that it needs nothing else."""

from __future__ import annotations

import json
import os
import re
import time
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from fsqueue import FileSampleRefQueue
from fsqueue.operate.report import Spread, Timeline, report
from tests.cli.test_program import snapshot
from tests.support import lease_name, numbered, ref, refs
from tests.support.program import run

EVIL = "<script>alert(1)</script>"
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """The words of a page, and its tags; every one that opens is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words += data.split()

    @property
    def text(self) -> str:
        return " ".join(self.words)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A queue that six refs were done in, an hour apart, three failed for one reason in two texts, and one expired."""
    with FileSampleRefQueue(tmp_path / "q", lease_timeout_s=60.0, run_id=EVIL, durable=False) as queue:
        queue.put([*numbered(6, "n-"), *refs(EVIL, "b", "c", "again"), *numbered(3, "p-")])
        for step in range(6):
            queue.ack(queue.get(1), step=step)
        for number in range(3):
            queue.fail(queue.get(1), f"{EVIL} {number} & more\nTraceback", retryable=False)
        queue.fail(queue.get(1), "not yet", retryable=True)
        queue.get(1)
        with queue.producer(EVIL):
            pass
    for step in range(6):
        at = time.time() - 3600.0 * (6 - step)
        os.utime(tmp_path / "q" / "done" / f"n-{step:05}@{step}.json", (at, at))
    return tmp_path / "q"


def page_of(path: Path) -> tuple[str, Page]:
    result = run("report", path, "-o", "-")
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout, Page(result.stdout)


def test_the_page_tells_how_the_run_went(path: Path) -> None:
    text = page_of(path)[1].text
    for told in (
        "pending 3", "leased 1", "done 6", "failed 3", "steps 0 to 5", "for 1 reason", "4 failed", "1 ref came again",
        "3 <script>alert(#)</script> # & more", "such as".upper(), "producer", "lease timeout 1.0 min",
        "from its last lease or renewal to its acknowledgement",
    ):  # fmt: skip
        assert told in text, told


def test_it_has_no_code_in_it_and_asks_nobody_for_anything(path: Path) -> None:
    """What users chose is text: it opens no tag, and there is a policy against whatever might."""
    raw, page = page_of(path)
    assert EVIL in page.text and EVIL not in raw
    assert page.tags.isdisjoint({"script", "link", "img", "iframe", "a", "b/", "object", "form", "base"})
    assert not {name for name in page.attributes if name.startswith("on")} | ({"src", "href"} & page.attributes)
    assert re.search(r"https?:|url\(|@import", raw) is None
    assert "default-src 'none'" in raw


def test_the_charts_are_whole_and_each_bar_says_what_it_is(path: Path) -> None:
    charts = re.findall(r'<svg class="chart".*?</svg>', page_of(path)[0], re.DOTALL)
    assert len(charts) == 2
    done = ElementTree.fromstring(charts[0])
    titles = [title.text or "" for title in done.iter("title")]
    assert sum(int(found[1]) for title in titles if (found := re.search(r"(\d+) done", title))) == 6
    assert len([bar for bar in done.iter("rect") if bar.get("class") == "done"]) == 6
    assert all(float(bar.get("height", "0")) > 0 for bar in done.iter("rect"))


def test_what_is_packed_is_in_it_too(path: Path) -> None:
    before = report(path)
    assert run("pack", path, "--older-than", "0").exit_code == 0
    after = report(path)
    assert before.timeline and after.timeline
    assert sum(after.timeline.done) == sum(before.timeline.done) == 6
    assert (after.steps, after.events) == (before.steps, before.events)
    assert "done" in before.ages and "done" not in after.ages, "a segment does not tell when each was acknowledged"


def test_it_changes_nothing_and_writes_the_file_at_once(path: Path, tmp_path: Path) -> None:
    before = snapshot(path)
    for _ in range(2):
        result = run("report", path, "--output", tmp_path / "run.html")
        assert (result.exit_code, result.stdout) == (0, "") and "run.html" in result.stderr
    assert snapshot(path) == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["q", "run.html"]
    Page((tmp_path / "run.html").read_text(encoding="utf-8"))


def test_json_is_the_same_without_the_page(path: Path) -> None:
    found = json.loads(run("report", path, "--json").stdout)
    assert found["status"]["counts"] == {"pending": 3, "leased": 1, "done": 6, "failed": 3}
    (dead,) = found["dead"]
    assert dead["count"] == 3 and len(dead["examples"]) == 3


def test_a_pause_is_told(path: Path) -> None:
    assert run("pause", path, "--reason", EVIL).exit_code == 0
    raw, page = page_of(path)
    assert "paused for" in page.text and page.text.count(EVIL) > 1 and EVIL not in raw


def test_slips(path: Path, tmp_path: Path) -> None:
    assert run("report", path).exit_code == 2
    result = run("report", path, "-o", tmp_path / "nowhere" / "run.html")
    assert result.exit_code == 1 and "cannot write" in result.stderr and "Traceback" not in result.stderr
    assert run("report", tmp_path / "nowhere", "-o", "-").exit_code == 3


def test_a_queue_in_which_nothing_happened(tmp_path: Path) -> None:
    FileSampleRefQueue(tmp_path / "q").close()
    text = page_of(tmp_path / "q")[1].text
    assert "Nothing is done yet" in text and "Nobody has the queue open" in text and "Dead letters" not in text


def test_files_that_hold_no_ref_are_counted_and_end_nothing(path: Path) -> None:
    (path / "failed" / "torn.json").write_text("{")
    (path / "pending" / lease_name(path, "p-00000")).mkdir()
    (path / "pending" / "x.json").mkdir()
    assert "could not be read" in page_of(path)[1].text


def test_many_owners_and_reasons_are_cut_and_counted(path: Path, tmp_path: Path) -> None:
    for number in range(250):
        (path / "leased" / f"o-{number}@node{number}.1.0a1b2c.json").write_bytes(msgspec.json.encode(ref("x")))
    assert "and 51 more" in page_of(path)[1].text


@pytest.mark.parametrize("span_s", [0.0, 0.05, 7.0, 3600.0, 5 * 86400.0, 3 * 365 * 86400.0])
def test_a_timeline_counts_everything_in_few_equal_parts(span_s: float) -> None:
    moments = [1_700_000_000.0 + part / 100 * span_s for part in range(101)]
    found = Timeline.of(moments, moments[:3], [])
    assert found is not None
    assert (sum(found.done), sum(found.dead), sum(found.ended)) == (101, 3, 0)
    assert len(found.done) == len(found.dead) == len(found.ended) <= 74
    assert found.begins_at <= moments[0] and moments[-1] < found.begins_at + (len(found.done) + 1) * found.width_s


def test_a_spread_sorts_ages_into_bounds() -> None:
    found = Spread.of([0.5, 1.0, 59.0, 60.0, 1e9])
    assert found is not None and (found.count, found.least, found.median, found.most) == (5, 0.5, 59.0, 1e9)
    assert found.within == [1, 1, 1, 1, 0, 0, 0, 0, 1]
    assert Spread.of([]) is None
