"""A user's file of code, read without running it: the names in it that a recipe could give, and the files that it imports."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from importlib.machinery import PathFinder
from importlib.metadata import entry_points
from pathlib import Path

from egd.files import read_regular

LARGEST = 2**20
FREE = ("object", "ABC", "Protocol")
"""Base classes without methods that a subclass could inherit."""


def defined(file: str, methods: Sequence[str], arguments: int | None = None) -> list[str]:
    """List the public classes of a Python file that have, or may have inherited, one of these methods.

    ``__call__`` must take ``arguments`` arguments, if a number is given. Where no method is asked for, all public classes and
    functions are listed. The list is empty for a file that cannot be read.
    """
    with suppress(OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        tree = ast.parse(read_regular(Path(file).expanduser(), LARGEST))
        return [name for name in _names(tree, methods, arguments) if not name.startswith("_")]
    return []


def _names(tree: ast.Module, methods: Sequence[str], arguments: int | None) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not methods:
            yield node.name
        if isinstance(node, ast.ClassDef) and (not methods or _makes(node, methods, arguments)):
            yield node.name


def _makes(node: ast.ClassDef, methods: Sequence[str], arguments: int | None) -> bool:
    found = [f for f in node.body if isinstance(f, ast.FunctionDef) and f.name in methods]
    if not found:
        return any(ast.unparse(base).rpartition(".")[2].partition("[")[0] not in FREE for base in node.bases)
    return any(f.name != "__call__" or arguments is None or _takes(f.args, 1 + arguments) for f in found)


def _takes(args: ast.arguments, count: int) -> bool:
    most = len(args.posonlyargs) + len(args.args)
    return most - len(args.defaults) <= count and (count <= most or args.vararg is not None)


def imported(file: Path) -> set[Path]:
    """Find the files of the user's own modules that a file imports, directly or not. Installed packages are left out, and so
    are the standard library and the packages of the toolkit itself.
    """
    found, waiting = set[Path](), [file]
    while waiting:
        path = waiting.pop()
        with suppress(OSError, SyntaxError, ValueError, RecursionError, MemoryError):
            names = _imports(ast.parse(read_regular(path, LARGEST)))
            new = {each for name in names for each in _files(name)} - found - {file}
            found |= new
            waiting += new
    return found


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _files(module: str) -> Iterator[Path]:
    """Yield the files of a module and of the packages that it lies in; a last part that names no module is ignored."""
    first, *rest = module.split(".")
    if of_toolkit(module) or first in sys.stdlib_module_names:
        return
    places: list[str] | None = None
    for part in (first, *rest):
        spec = PathFinder.find_spec(part, places)  # by its last part alone, as its package is not imported
        if spec is None:
            return
        if spec.origin and spec.origin.endswith(".py"):
            if {"site-packages", "dist-packages"} & {*Path(spec.origin).parts}:
                return
            yield Path(spec.origin).resolve()
        if spec.submodule_search_locations is None:
            return
        places = [*spec.submodule_search_locations]


def of_toolkit(module: str) -> bool:
    """Return whether a module is of the toolkit's own packages."""
    return _top(module) in _toolkit()


@cache
def _toolkit() -> frozenset[str]:
    return frozenset({_top(__name__), *(_top(entry.module) for entry in entry_points(group="egd.experiments"))})


def _top(module: str) -> str:
    return module.partition(".")[0]
