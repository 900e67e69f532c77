"""No module imports itself through others, and no private name crosses a module's border."""

from __future__ import annotations

import ast
from pathlib import Path

import grimp
import pytest

PACKAGES = ("kvoverlap", "dashboard", "measure", "planner", "hw", "sim")
ROOT = Path(__file__).resolve().parents[2]


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that reach each other (Tarjan's strongly connected components)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(module: str) -> None:
        number[module] = low[module] = len(number)
        stack.append(module)
        for other in imports[module]:
            if other not in number:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], number[other])
        if low[module] == number[module]:
            at = stack.index(module)
            group = stack[at:]
            del stack[at:]
            if len(group) > 1:
                found.append(sorted(group))

    for module in imports:
        if module not in number:
            visit(module)
    return found


def test_circles_are_found():
    imports = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}
    assert circles(imports) == [["b", "c"]]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_imports_itself_through_others(package):
    graph = grimp.build_graph(package)
    imports = {one: graph.find_modules_directly_imported_by(one) for one in graph.modules}
    assert circles(imports) == []


def test_no_private_name_is_imported():
    private = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom):
                    names = [alias.name for alias in node.names]
                    private += [
                        f"{path.relative_to(ROOT)}: {name}"
                        for name in names
                        if name.startswith("_") and not name.startswith("__")
                    ]
    assert private == []
