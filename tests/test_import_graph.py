"""Imports form no circle, wherever they are written, and go in one direction: benchmarks, then rl, then egd."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {"egd": {"egd"}, "rl": {"egd", "rl"}, "benchmarks": {"egd", "rl", "benchmarks"}}


def modules() -> dict[str, Path]:
    """Dotted name -> file."""
    files = [path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py")]
    return {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in files}


def imported(source: str, known: Collection[str]) -> Iterator[str]:
    """The modules that a file imports, in functions and for type checkers only, too: of ``from a.b import c``, a.b.c where
    that is a module, else a.b.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"line {node.lineno}: write the whole name of the module"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in known else node.module for name in names)


def circles(graph: Mapping[str, Collection[str]]) -> list[set[str]]:
    """The largest sets of modules that import each other, directly or not."""
    reached = {module: reach(graph, module) for module in graph}
    found = [{other for other in reached[module] if module in reached[other]} for module in graph]
    return [circle for i, circle in enumerate(found) if circle and circle not in found[:i]]


def reach(graph: Mapping[str, Collection[str]], start: str) -> set[str]:
    """All modules that ``start`` imports, directly or not; itself only where it lies on a circle."""
    seen: set[str] = set()
    ahead = list(graph[start])
    while ahead:
        module = ahead.pop()
        if module not in seen:
            seen.add(module)
            ahead += graph[module]
    return seen


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    known = modules()
    found = {module: set(imported(path.read_text(encoding="utf-8"), known)) for module, path in known.items()}
    return {module: names & set(known) - {module} for module, names in found.items()}


def test_a_circle_is_found_wherever_its_imports_are_written() -> None:
    source = "import a\nif TYPE_CHECKING:\n    from p import b\ndef f():\n    from p.c import X\n    from p import Y\n"
    assert set(imported(source, ["a", "p", "p.b", "p.c"])) == {"a", "p", "p.b", "p.c"}
    assert circles({"a": "b", "b": "c", "c": "b", "d": "ae", "e": ""}) == [{"b", "c"}]
    with pytest.raises(AssertionError, match="line 1"):
        list(imported("from .b import c", []))


def test_no_modules_import_each_other(graph: Mapping[str, set[str]]) -> None:
    assert circles(graph) == []


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_those_below_it(graph: Mapping[str, set[str]], package: str) -> None:
    own = {module: names for module, names in graph.items() if module.partition(".")[0] == package}
    assert own
    allowed = MAY_IMPORT[package]
    assert {m: found for m, names in own.items() if (found := {n for n in names if n.partition(".")[0] not in allowed})} == {}


def room(module: str) -> str:
    """The folder or file below the package that a module lies in; the package itself for its ``__init__``."""
    return ".".join(module.split(".")[:2])


def rooms_of(text: str, package: str) -> set[str]:
    return {f"{package}.{name}" for name in re.findall(r"`(\w+)`", text)}


def lines_of_map(package: str) -> list[tuple[set[str], str, set[str]]]:
    """Lines of CONTRIBUTING.md's map: rooms, what they may import, and the rooms that are named there."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition(f"| rooms of `{package}` |")[2].partition("\n\n")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]
    lines = [(rooms_of(own, package), may, rooms_of(may, package)) for own, _, may in cells]
    every = set().union(*(own for own, _, _ in lines))
    return [(own, may, named & every) for own, may, named in lines]


def map_of_rooms(package: str) -> dict[str, set[str]]:
    """Room -> rooms of the package that it may import, as CONTRIBUTING.md has them."""
    lines = lines_of_map(package)
    groups = [own for own, _, _ in lines]
    every = set().union(*groups)
    allowed: dict[str, set[str]] = {}
    for own, may, named in lines:
        rooms = every - named if may.startswith("all") else named
        if "mathematics" in may:
            rooms = rooms | groups[0] | groups[1]
        if "the first line" in may:
            rooms = rooms | groups[0]
        allowed |= dict.fromkeys(own, own | rooms)
    return allowed


@pytest.mark.parametrize("package", ["egd", "rl"])
def test_the_map_of_rooms_is_right(graph: Mapping[str, set[str]], package: str) -> None:
    allowed = map_of_rooms(package)
    own = {module: names for module, names in graph.items() if module.startswith(f"{package}.")}
    assert {room(module) for module in own} == set(allowed)
    found = {(module, name) for module, names in own.items() for name in names if name.startswith(f"{package}.")}
    assert sorted((m, n) for m, n in found if room(n) not in allowed[room(m)]) == []
    used = {(room(module), room(name)) for module, name in found}
    lines = [(own, named) for own, may, named in lines_of_map(package) if not may.startswith("all")]
    unused = [(own, name) for own, named in lines for name in named if not used & {(one, name) for one in own}]
    assert unused == [], "these need not be imported"
