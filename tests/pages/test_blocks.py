"""Running pages: what differs from the page is found, and nothing hangs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.pages import blocks
from tests.pages.blocks import blocks_of, commands_of, normalised, play, scenes_of

WORK = """
<!-- test: folder=a file=hello.py -->
```python
import time
print("hello", flush=True)
time.sleep(3600)
```

<!-- test: folder=a -->
```console
$ python hello.py &
hello
$ kill -9 $!
$ echo there
there
```
"""


def run(page: str, folder: Path) -> None:
    for number, scene in enumerate(scenes_of(blocks_of(page, "page.md"))):
        play(scene, folder / f"{number}")


def test_blocks_of_a_folder_run_in_order_and_what_is_in_the_background_is_awaited(tmp_path: Path) -> None:
    run(WORK, tmp_path)
    assert [block.line for block in blocks_of(WORK, "page.md")] == [3, 10]


@pytest.mark.parametrize(
    "page",
    [
        WORK.replace("there\n```", "elsewhere\n```"),
        "```console\n$ true\nmore than that\n```\n",
        "```console\n$ echo more; echo than that\nmore\n```\n",
        "```python\nprint(1)\n```\n\n```text\n2\n```\n",
        "```python\nprint(1)  # prints 2\n```\n",
        "```python\nprint(1)\n```\n",
        "```python\nraise SystemExit(3)\n```\n",
    ],
)
def test_what_differs_from_the_page_fails(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "GUARD_S", 2.0)
    with pytest.raises(pytest.fail.Exception):
        run(page, tmp_path)


def test_a_command_that_does_not_end_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "GUARD_S", 0.2)
    with pytest.raises(pytest.fail.Exception, match="nothing more came"):
        run("```console\n$ sleep 3600\n```\n", tmp_path)


def test_owners_times_and_this_host_are_alike_on_every_machine() -> None:
    here = os.uname().nodename
    found = normalised(f"ann.17.0a1b2c  {here}  17     dead     1       12.5 s   none\nat 2026-01-02 03:04:05+00:00\n")
    assert found == normalised("ann.4711.9f3a01  node1  4711  dead  1  3.1 min  none\nat 2025-10-09 08:07:06+00:00\n")


def test_a_transcript_is_commands_and_what_they_print() -> None:
    text = "$ one \\\n> more\nx\n> y\n$ two\n"
    assert list(commands_of(text)) == [("one \\\nmore", "x\n> y\n"), ("two", "")]


def test_what_a_program_leaves_behind_is_there_for_those_after_it(tmp_path: Path) -> None:
    """As it is for a reader, who has one folder."""
    page = '```python\nopen("x", "x").close()\n```\n\nand then\n\n' * 2
    with pytest.raises(pytest.fail.Exception, match="FileExistsError"):
        run(page, tmp_path)


def test_a_block_that_lacks_a_package_is_left_out_and_the_others_run(tmp_path: Path) -> None:
    page = "<!-- test: needs=nobody_has_this -->\n```python\nraise SystemExit(1)\n```\n\n```console\n$ echo x\nx\n```\n"
    (scene,) = scenes_of(blocks_of(page, "page.md"))
    play(scene.without_what_is_missing(), tmp_path / "folder")
    with pytest.raises(pytest.skip.Exception, match="nobody_has_this"):
        scenes_of(blocks_of(page.replace(" -->", " file=x.py -->"), "page.md"))[0].without_what_is_missing()
