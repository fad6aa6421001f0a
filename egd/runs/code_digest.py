"""Digests of the code that a result depends on, found from the objects in use rather than from a list kept by hand.

There are three kinds of code. The source in egd and in the package that trains, as far as training reaches it by imports, has
one digest together. Installed packages are identified by name and version. All other code is the user's own, and is identified
by the digest of its files: the name of a class is the same in another process or folder, and changes with every edit.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from importlib.machinery import PathFinder
from importlib.metadata import packages_distributions, version
from itertools import accumulate
from pathlib import Path
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

import pydantic
import torch

from egd.config.components import loaded


class UnknownCode(Exception):
    """A class or a function without a source file, as in a notebook: a change of it could not be detected."""


@dataclass(frozen=True)
class Sources:
    """The source code of a package that trains. ``job`` is the module from which imports reach all training code."""

    job: str

    @property
    def packages(self) -> frozenset[str]:
        """The packages whose training code has one digest together."""
        return frozenset({_top(self.job), _top(__name__)})

    def digest(self) -> str:
        """Return the digest of the packages' training code. Comments and docstrings do not affect it."""
        return _digest(self.job, self.packages)

    def names(self, *things: object, apart_from: tuple[object, ...] = ()) -> list[str]:
        """Return the names of all classes and functions that these objects are built from. Raises UnknownCode for code without
        a file.

        Attributes, closures, arguments of partial functions and containers are followed; tensors and settings are not, nor are
        the objects, and the instances of the classes, in ``apart_from``.
        """
        found = {self.name(each.__module__ or "builtins", each.__qualname__) for each in _reached(things, apart_from)}
        return sorted(name for name in found if name is not None)

    def outside(self, *things: object) -> list[str]:
        """Return the names, as in ``names``, of the code outside the packages."""
        inside = {f"{module}:" for module in _closure(self.job, self.packages)}
        return [name for name in self.names(*things) if name.partition(":")[0] + ":" not in inside]

    def settings(self, value: Any) -> Any:
        """Replace every text in the settings that names code, such as ``my_file.py:Name``, by the name of that code with its
        digest.
        """
        if isinstance(value, str):
            found = loaded(value)
            return value if found is None else self.name(*found) or value
        if isinstance(value, dict):
            return {key: self.settings(item) for key, item in value.items()}
        return [self.settings(item) for item in value] if isinstance(value, list | tuple) else value

    def name(self, module: str, qualified: str) -> str | None:
        """Return the name, with a version or digest, of a class or function in a module. Returns None for the standard library.
        Raises UnknownCode where the module has no file.
        """
        top = _top(module)
        if module == "builtins":
            raise UnknownCode(qualified)  # run by exec, in a namespace without a name
        if top in sys.stdlib_module_names:
            return None
        if top in self.packages and module in _closure(self.job, self.packages):
            return f"{module}:{qualified}"
        if top not in self.packages and _installed(top):
            return f"{top} {_version(top)}:{qualified}"
        if _file(module) is None:
            raise UnknownCode(f"{module}:{qualified}")
        return f"{_digest(module, self.packages)}:{qualified}"


# -- from objects to classes and functions -----------------------------------------------------------------------------

Component = type | FunctionType
WRITTEN = 1 << 9  # flag of a type that a class statement made, unlike those built into the interpreter
VALUES = (str, bytes, int, float, complex, type(None), torch.Tensor, torch.Generator, pydantic.BaseModel, ModuleType)


def _reached(things: tuple[object, ...], apart_from: tuple[object, ...]) -> Iterator[Component]:
    seen, waiting = {id(thing): thing for thing in apart_from}, [*things]
    values: tuple[type, ...] = (*VALUES, *(kind for kind in apart_from if isinstance(kind, type)))
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, values):
            continue
        seen[id(thing)] = thing  # kept alive, so that no other object takes its id
        if isinstance(thing, type):
            yield from (base for base in thing.__mro__ if base.__flags__ & WRITTEN)
            continue
        if isinstance(thing, FunctionType):
            yield thing
        waiting += [type(thing), *_parts(thing)]


def _parts(thing: Any) -> Iterator[Any]:
    if isinstance(thing, FunctionType):
        yield from (thing.__defaults__, thing.__kwdefaults__, *map(_content, thing.__closure__ or ()))
    elif isinstance(thing, MethodType):
        yield from (thing.__self__, thing.__func__)
    elif isinstance(thing, partial):
        yield from (thing.func, thing.args, thing.keywords)
    elif isinstance(thing, dict):
        yield from (*thing.keys(), *thing.values())
    elif isinstance(thing, list | tuple | set | frozenset):
        yield from thing
    yield from getattr(thing, "__dict__", {}).values()
    for base in type(thing).__mro__:
        slots = getattr(base, "__slots__", ())
        yield from (getattr(thing, name, None) for name in ((slots,) if isinstance(slots, str) else slots))


def _content(cell: CellType) -> Any:
    with suppress(ValueError):  # empty: the function refers to a name that has no value yet
        return cell.cell_contents
    return None


# -- from modules to source --------------------------------------------------------------------------------------------


@cache
def _digest(module: str, packages: frozenset[str]) -> str:
    """Digest a module and all that it imports. Files count by name and content, not by location."""
    content = sorted((path.name, code) for path, code in _closure(module, packages).values())
    return hashlib.blake2b(repr(content).encode(), digest_size=16).hexdigest()


@cache
def _closure(module: str, packages: frozenset[str]) -> Mapping[str, tuple[Path, str]]:
    """Return the file and the code of every module that this module imports, directly or not. Installed packages are left
    out.
    """
    found: dict[str, tuple[Path, str]] = {}
    waiting, seen = {module}, set[str]()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        top = _top(name)
        if top in packages or not _installed(top):
            path = _file(name)
            if path is not None:
                code, imports = _read(path, name)
                found[name] = path, code
                waiting |= imports - seen
    return found


def _top(module: str) -> str:
    return module.partition(".")[0]


@cache
def _installed(top: str) -> bool:
    """Return whether a package belongs to the standard library or is installed in site-packages."""
    if top in sys.stdlib_module_names:
        return True
    folders = _folders(top)
    places = folders if folders else [path for path in [_file(top)] if path is not None]
    return bool(places) and all({"site-packages", "dist-packages"} & {*place.parts} for place in places)


@cache
def _version(top: str) -> str:
    known = getattr(sys.modules.get(top), "__version__", None)
    if known is not None:
        return str(known)
    return " ".join(version(name) for name in sorted(set(packages_distributions().get(top, ()))))  # takes half a second


@cache
def _file(module: str) -> Path | None:
    """Return a module's file without importing it. Returns None where the name is not a module's, such as that of an imported
    class.
    """
    place = getattr(sys.modules.get(module), "__file__", None)
    if place is None:
        above, _, name = module.rpartition(".")
        spec = PathFinder.find_spec(module, [*map(str, _folders(above))] if name != module else None)
        place = spec.origin if spec is not None and spec.has_location else None
    return Path(place) if place is not None and Path(place).suffix in ("", ".py") else None


@cache
def _folders(module: str) -> list[Path]:
    """Return the folders that hold a package's modules, [] where the name is not a package's."""
    places = getattr(sys.modules.get(module), "__path__", None)
    if places is None and module not in sys.modules:
        above, _, name = module.rpartition(".")
        spec = PathFinder.find_spec(module, [*map(str, _folders(above))] if name != module else None)
        places = spec.submodule_search_locations if spec is not None else None
    return [*map(Path, places or ())]


@cache
def _read(path: Path, module: str) -> tuple[str, frozenset[str]]:
    """Return a file's code without docstrings, and the names of all modules that it imports."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError) as error:
        raise UnknownCode(str(path)) from error
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    imports = frozenset(above for name in _imports(tree, package) for above in accumulate(name.split("."), "{}.{}".format))
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [line for line in body if not _is_text(line)]  # type: ignore[attr-defined]
    return ast.dump(tree), imports


def _is_text(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)


def _imports(tree: ast.Module, package: str) -> Iterator[str]:
    """Yield the names of all imported modules, and the texts that name modules of the same package: these may be imported by
    name.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: 1 - node.level or None] if node.level and package else []
            place = ".".join([*above, *([node.module] if node.module else [])])
            yield from (place, *(f"{place}.{name.name}" for name in node.names))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _is_below(node.value, _top(package)):
            yield node.value
            yield from (f"{node.value}.{path.stem}" for folder in _folders(node.value) for path in folder.glob("[!_]*.py"))


def _is_below(text: str, top: str) -> bool:
    return text.startswith(f"{top}.") and all(part.isidentifier() for part in text.split("."))
