"""Every program and every transcript of every page runs as it stands, and prints what the page says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pages.blocks import Scene, blocks_of, pages, play, scenes_of
from tests.support import ROOT

TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in pages()}
BLOCKS = {page: blocks_of(text, page) for page, text in TEXTS.items()}
SCENES = [scene for blocks in BLOCKS.values() for scene in scenes_of(blocks)]
LANGUAGES = {"python", "console", "text", "sh", "json", ""}


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_the_page_s_blocks_run_as_they_stand(scene: Scene, tmp_path: Path) -> None:
    """Programs end by themselves with 0, and print what follows them; transcripts are what a shell shows."""
    play(scene.without_what_is_missing(), tmp_path / "folder")


@pytest.mark.parametrize("page", TEXTS)
def test_the_page_s_blocks_are_of_a_kind_that_is_known(page: str) -> None:
    """No program hides in an indented block or one of another language, or behind a mark that means nothing."""
    assert TEXTS[page].count("```") == 2 * len(BLOCKS[page])
    for block in BLOCKS[page]:
        assert set(block.marks) <= {"folder", "file", "with", "needs", "warnings"}, f"{page}, line {block.line}"
        assert block.language in LANGUAGES, f"{page}, line {block.line}"
