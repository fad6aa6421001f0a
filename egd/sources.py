"""Which code a result depends on: a digest of modules and of all they import from the same packages."""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any


def digest(*components: Callable[..., Any]) -> str:
    """Of the code of these classes or functions and of what it imports from their own packages and from this one, comments and
    docstrings apart: a change of any of it changes the digest.
    """
    return _digest(frozenset(component.__module__ for component in components))


@cache
def _digest(modules: frozenset[str]) -> str:
    roots = {module.partition(".")[0] for module in {__name__, *modules}}
    found: dict[str, str] = {}
    waiting = set(modules)
    while waiting:
        module = waiting.pop()
        path = _file(module)
        if module not in found and path is not None:
            found[module], imports = _read(path)
            waiting |= {name for name in imports if name.partition(".")[0] in roots}
    content = sorted(found.values())  # not their names: that of a file of the user's own is another in every process
    return hashlib.blake2b(repr(content).encode(), digest_size=16).hexdigest()


@cache
def _file(module: str) -> Path | None:
    """None for what is no module, as a class that is imported from one. Nothing is imported for it."""
    loaded = getattr(sys.modules.get(module), "__file__", None)
    if loaded is not None:
        return Path(loaded) if loaded.endswith(".py") else None
    root, *names = module.split(".")
    below = [Path(folder, *names) for folder in getattr(sys.modules.get(root), "__path__", ())]
    places = [place for path in below for place in (path.with_suffix(".py"), path / "__init__.py")]
    return next((place for place in places if place.is_file()), None)


@cache
def _read(path: Path) -> tuple[str, frozenset[str]]:
    """A file's code, and what it imports."""
    tree = _parsed(path)
    return ast.dump(tree), frozenset(_imports(tree))


def _parsed(path: Path) -> ast.Module:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return tree


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)
