"""Names in a user's file that a recipe could give, read without running the file; for messages alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from egd.runs.files import read_regular

LARGEST = 2**20
FREE = ("object", "ABC", "Protocol")
"""Base classes without methods that a subclass could inherit."""


def defined(file: str, methods: Sequence[str], arguments: int | None = None) -> list[str]:
    """List the public classes of a Python file that have, or may have inherited, one of these methods.

    ``__call__`` must take so many ``arguments``. Where no method is asked for, all public classes and functions are listed. The
    list is empty for a file that cannot be read.
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
