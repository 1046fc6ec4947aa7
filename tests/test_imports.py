"""The shape of the package: no module imports itself through others. The layers are a contract in pyproject.toml."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

import grimp


def circle(imports: dict[str, set[str]]) -> list[str]:
    """Return the modules of one circle, or []."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_module_imports_itself_through_others() -> None:
    """There is no import circle, neither at run time nor in what only a type checker imports."""
    graph = grimp.build_graph("fsqueue", cache_dir=None)
    imports = {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}
    assert circle(imports) == []


def test_a_circle_is_found() -> None:
    """The test above sees a circle where there is one."""
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}
