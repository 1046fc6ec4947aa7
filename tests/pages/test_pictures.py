"""The pictures on the pages are what the committed scripts draw."""

from __future__ import annotations

import importlib
import re
import runpy
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PICTURES = ROOT / ".github" / "pictures"
CHARTS = ROOT / "benchmarks" / "charts"


def script(path: Path) -> dict[str, Any]:
    return runpy.run_path(str(path), run_name=path.stem)


def words_in(svg: str) -> str:
    """Return all text of a picture, with plain spaces."""
    return " ".join("".join(ElementTree.fromstring(svg).itertext()).split())


def test_the_directory_is_as_its_script_draws_it() -> None:
    drawn = script(PICTURES / "directory.py")["picture"]()
    assert drawn == (PICTURES / "directory.svg").read_text(encoding="utf-8")
    assert {"pending/", "leased/", "done/", "failed/"} <= set(words_in(drawn.replace("</text>", " </text>")).split())


def test_the_chart_is_as_its_script_draws_it() -> None:
    drawn = script(CHARTS / "cost.py")["chart"]()
    assert drawn == (CHARTS / "cost.svg").read_text(encoding="utf-8")


def test_the_chart_and_readme_s_table_have_the_same_figures() -> None:
    rows = [(row.name, f"{row.one:,}", f"{row.sixty_four:,}") for row in script(CHARTS / "cost.py")["ROWS"]]
    table = re.findall(r"^\| \**([^|*]+?)\** \| ([\d,]+) \| ([\d,]+) \|$", README, re.MULTILINE)
    assert table == rows


def test_status_and_top_are_drawn_from_a_real_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script starts producer and trainers, and both pictures show them, as those on the page do."""
    monkeypatch.syspath_prepend(PICTURES)
    importlib.import_module("terminals").draw(tmp_path, looks=4)
    for folder in (tmp_path, PICTURES):
        for name in ("status.svg", "top.svg"):
            words = words_in((folder / name).read_text(encoding="utf-8").replace("</text>", " </text>"))
            for word in ("pending", "rollout-0", "trainer-1", "alive", "16 refs at a time"):
                assert word in words, f"{folder.name}/{name}"
