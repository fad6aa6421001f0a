"""Components by name: how a recipe's ``{name: ..., key: value}`` becomes an object.

A component is any class (or function returning a callable) in one file. Its constructor's parameters are of two kinds:
**parts**, which the experiment supplies by parameter name (``energy``, ``denoiser``, ``posterior``, ``schedule``,
``support``, ``beta``, ``omega``), and **settings**, which the recipe supplies and which are checked against their type
hints. Within the library a file in ``egd/energies``, ``objectives`` or ``rules`` is found by itself; a stranger's class
is named ``package.module:Name`` or ``path/to/file.py:Name``.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pydantic

from egd.errors import UserError, nearest
from egd.types import Part

Component = Callable[..., Any]


@dataclass(frozen=True)
class Spec:
    """A component's name and settings as a recipe gives them."""

    name: str
    settings: Mapping[str, Any]

    @staticmethod
    def of(value: Any, key: str) -> Spec:
        """From ``name`` or ``{name: ..., setting: ...}``. UserError naming ``key`` for anything else."""
        if isinstance(value, str):
            return Spec(value, {})
        if isinstance(value, Mapping) and isinstance(value.get("name"), str):
            return Spec(value["name"], {k: v for k, v in value.items() if k != "name"})
        raise UserError(f"{value!r} is no component; write its name, or {{name: ..., setting: ...}}", key=key)


@dataclass(frozen=True)
class Registry:
    """The components of one kind: every class or function that the modules of a package define in public."""

    kind: str
    package: str

    def names(self) -> dict[str, Component]:
        """Short name -> component, names in snake case: ``FirstOrder`` is ``first_order``."""
        return _scan(self.package)

    def find(self, name: str, key: str) -> Component:
        """The component of that short name or dotted path. UserError (naming ``key``) when there is none."""
        if ":" in name:
            return by_path(name, key)
        try:
            return self.names()[name]
        except KeyError:
            raise UserError(f"no {self.kind} is called '{name}'; {nearest(name, self.names())}", key=key) from None


@cache
def _scan(package: str) -> dict[str, Component]:
    found: dict[str, Component] = {}
    root = importlib.import_module(package)
    modules = [f"{package}.{m.name}" for m in pkgutil.iter_modules(root.__path__)] if hasattr(root, "__path__") else []
    for module in [importlib.import_module(name) for name in modules] or [root]:
        for name in getattr(module, "__all__", ()):
            found[re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()] = getattr(module, name)
    return found


def by_path(path: str, key: str) -> Component:
    """The class or function ``package.module:Name`` or ``path/to/file.py:Name``. UserError (naming ``key``) where none is."""
    place, _, name = path.rpartition(":")
    try:
        module = _load_file(place) if place.endswith(".py") else importlib.import_module(place)
    except (ImportError, FileNotFoundError, TypeError, ValueError) as error:
        raise UserError(f"cannot import '{place}' of '{path}': {error}; is it on PYTHONPATH?", key=key) from error
    if not hasattr(module, name):
        public = [n for n in vars(module) if not n.startswith("_")]
        raise UserError(f"'{place}' has no '{name}'; {nearest(name, public)}", key=key)
    component: Component = getattr(module, name)
    if not callable(component):
        raise UserError(f"'{path}' is {component!r}, not a class or a function", key=key)
    return component


def _load_file(place: str) -> Any:
    file = Path(place).expanduser().resolve()
    name = f"egd_user_{file.stem}_{abs(hash(file))}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if not file.is_file() or spec is None or spec.loader is None:
        raise FileNotFoundError(f"no such file: {file}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def makes_callables(component: Component) -> bool:
    """Whether what the component makes can be called, as far as a class can tell."""
    return not inspect.isclass(component) or any("__call__" in vars(base) for base in component.__mro__)


def parameters(component: Component) -> dict[str, inspect.Parameter]:
    """The constructor's parameters by name, without ``*args`` and ``**kwargs``."""
    open_ended = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {n: p for n, p in inspect.signature(component).parameters.items() if p.kind not in open_ended}


def validate(registry: Registry, spec: Spec, parts: set[str], key: str) -> Component:
    """Find the component and check the settings against its type hints. UserError naming ``key`` and the setting."""
    component = registry.find(spec.name, key)
    _settings(component, spec, parts, key, lambda r, s, k: validate(r, s, parts, k))
    return component


def build(registry: Registry, spec: Spec, parts: Mapping[str, Any], key: str) -> Any:
    """The component with its settings and those of ``parts`` that its constructor names; a setting wins over a part."""
    component = registry.find(spec.name, key)
    wanted = {name: parts[name] for name in parameters(component) if name in parts}
    settings = _settings(component, spec, set(parts), key, lambda r, s, k: build(r, s, parts, k))
    return component(**{**wanted, **settings})


def bind(registry: Registry, spec: Spec, parts: set[str], key: str) -> Component:
    """The function itself, its settings filled in; ``parts`` are the arguments that it is called with later."""
    component = registry.find(spec.name, key)
    settings = _settings(component, spec, parts, key, lambda r, s, k: build(r, s, {}, k))
    return partial(component, **settings) if settings else component


def wanted_parts(registry: Registry, spec: Spec, parts: set[str], key: str) -> set[str]:
    """Those of ``parts`` that the component, or one nested in its settings, takes from outside."""
    component = registry.find(spec.name, key)
    wanted = (set(parameters(component)) & parts) - set(spec.settings)
    inner: list[set[str]] = []
    _settings(component, spec, parts, key, lambda r, s, k: inner.append(wanted_parts(r, s, parts, k)))
    return wanted.union(*inner)


Make = Callable[[Registry, Spec, str], Any]


def _settings(component: Component, spec: Spec, parts: set[str], key: str, make: Make) -> dict[str, Any]:
    known = parameters(component)
    for name in spec.settings:
        if name not in known:
            options = [k for k in known if k not in parts] or ["(it has no settings)"]
            raise UserError(f"'{spec.name}' has no setting '{name}'; {nearest(name, options)}", key=f"{key}.{name}")
    for name, parameter in known.items():
        if name not in spec.settings and name not in parts and parameter.default is inspect.Parameter.empty:
            raise UserError(
                f"'{spec.name}' needs '{name}', which is neither a setting given nor a part supplied here "
                f"({', '.join(sorted(parts))})",
                key=f"{key}.{name}",
            )
    hints = _hints(component)
    return {name: _setting(hints.get(name, Any), value, f"{key}.{name}", make) for name, value in spec.settings.items()}


def _setting(hint: Any, value: Any, key: str, make: Make) -> Any:
    part, many = _part(hint)
    if part is None or value is None:
        return _check(hint, value, key)
    registry = Registry(part.kind, part.package)
    if not many:
        return make(registry, Spec.of(value, key), key)
    if not isinstance(value, list | tuple):
        raise UserError(f"{value!r} is not a list of components", key=key)
    return tuple(make(registry, Spec.of(v, f"{key}.{i}"), f"{key}.{i}") for i, v in enumerate(value))


def _part(hint: Any, many: bool = False) -> tuple[Part | None, bool]:
    """The contract that a type hint names, if any, and whether it asks for a sequence of them."""
    if get_origin(hint) is Annotated:
        return next((m for m in hint.__metadata__ if isinstance(m, Part)), None), many
    sequence = inspect.isclass(get_origin(hint)) and issubclass(get_origin(hint), Sequence)
    found = (_part(arg, many or sequence) for arg in get_args(hint) if not isinstance(arg, list))
    return next((f for f in found if f[0] is not None), (None, False))


def _hints(component: Component) -> dict[str, Any]:
    try:
        return get_type_hints(component.__init__ if inspect.isclass(component) else component, include_extras=True)
    except NameError:  # hints that exist for type checkers only: settings are then taken as they are
        return {}


def _check(hint: Any, value: Any, key: str) -> Any:
    section = inspect.isclass(hint) and issubclass(hint, pydantic.BaseModel)  # which has a configuration of its own
    config = None if section else pydantic.ConfigDict(arbitrary_types_allowed=True)
    try:
        return pydantic.TypeAdapter(hint, config=config).validate_python(value)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        wrong, where = (first["input"], ".".join(map(str, (key, *first["loc"])))) if section else (value, key)
        raise UserError(f"{wrong!r} does not fit: {first['msg']}", key=where) from None
