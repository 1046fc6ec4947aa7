"""The shape of the package: no module imports itself through others. The layers are a contract in pyproject.toml."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

import grimp
import pytest

# Circles that imports for the types alone still make. What is mended leaves the list, and nothing joins it.
LEFT = (
    {"control.controller", "control.train_lease"},
    {"operate.doctor.advice", "operate.doctor.diagnosis"},
)


def circle(imports: dict[str, set[str]]) -> list[str]:
    """Return the modules of one circle, or []."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """Every module and what it imports, also where only a type checker does."""
    graph = grimp.build_graph("fsqueue", cache_dir=None)
    return {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}


def test_no_module_imports_itself_through_others(imports: dict[str, set[str]]) -> None:
    """There is no import circle, neither at run time nor for the type checker."""
    for group in ({f"fsqueue.{name}" for name in names} for names in LEFT):
        for module in group & imports.keys():
            imports[module] -= group
    assert circle(imports) == []


def test_a_circle_is_found() -> None:
    """The test above sees a circle where there is one."""
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}
