"""Components by name: how a recipe's ``{name: ..., key: value}`` becomes an object.

A component is a class (or a function that returns a callable) in one file. Its constructor has two kinds of parameters:
**parts**, which the experiment supplies by parameter name (``energy``, ``denoiser``, ``posterior``, ``schedule``, ``support``,
``beta``, ``omega``), and **settings**, which the recipe supplies and which are checked against their type hints. Within the
library, public classes in ``egd/energies``, ``egd/objectives`` and ``egd/rules`` are found without registration. A user's own
class is named ``package.module:Name`` or ``path/to/file.py:Name``.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pydantic

from egd.config.trust import is_pythons_own, may_name_code, require_trust
from egd.errors import UserError, nearest, shown
from egd.own_files import defined
from egd.types import ComponentKind

Component = Callable[..., Any]


@dataclass(frozen=True)
class Spec:
    """A component's name and settings as a recipe gives them."""

    name: str
    settings: Mapping[str, Any]

    @staticmethod
    def of(value: Any, key: str) -> Spec:
        """Parse ``name`` or ``{name: ..., setting: ...}``. Raises UserError, naming ``key``, for anything else."""
        if isinstance(value, str):
            return Spec(value, {})
        if isinstance(value, Mapping) and isinstance(value.get("name"), str):
            return Spec(value["name"], {k: v for k, v in value.items() if k != "name"})
        raise UserError(f"{value!r} is no component; write its name, or {{name: ..., setting: ...}}", key=key)


@dataclass(frozen=True)
class Registry:
    """The components of one kind: all public classes and functions in the modules of a package."""

    kind: str
    package: str
    makes: tuple[str, ...] = ()
    """Methods, one of which a built object must have; empty where any object will do."""
    arguments: int | None = None
    """The number of arguments of the object's ``__call__``, where it has one."""

    @staticmethod
    def of(kind: ComponentKind) -> Registry:
        """Return the registry of the components that may fill a part."""
        return Registry(kind.kind, kind.package, kind.makes, kind.arguments)

    def names(self) -> dict[str, Component]:
        """Return the components by short name: the class's in snake case, without the kind at its end. ``FirstOrder`` becomes
        ``first_order``, and the posterior ``ExactPosterior`` is ``exact``.
        """
        return _scan(self.package, self.kind)

    def find(self, name: str, key: str) -> Component:
        """Return the component of this short name or path. Raises UserError, naming ``key``, where there is none."""
        if ":" in name.removesuffix(":"):
            found = by_path(name, key, self.package)
            self._check_class(found, name, key)
            return found
        try:
            return self.names()[name]
        except KeyError:
            raise self.unknown(name, key, self.names()) from None

    def unknown(self, name: str, key: str, known: Iterable[str]) -> UserError:
        """Make the error for a name that is not among the ``known``. For a file or a module it explains how to name a component
        in it.
        """
        place = name.removesuffix(":")
        if not place.endswith(".py"):
            path = f" (what is in a module is named {place}:NAME)" if "." in place else ""
            return UserError(f"no {self.kind} is called '{name}'; {nearest(name, known)}{path}", key=key)
        if not may_name_code():  # a file that a stranger names is not even looked at
            return UserError(f"'{name}' is no {self.kind}; what is in a file is named {place}:NAME", key=key)
        if not Path(place).expanduser().is_file():
            return UserError(f"no such file: {place}; what is in a file is named file.py:NAME", key=key)
        return UserError(f"'{name}' is a file; {self._named_in(place)}", key=key)

    def _named_in(self, file: str) -> str:
        """Explain how to name a component in this file, or how to write one where the file has none."""
        found = defined(file, self.makes, self.arguments)
        if found:
            return f"name the {self.kind} in it: {', '.join(f'{file}:{name}' for name in found)}"
        return f"write {self._form()} in it, and name it {file}:NAME"

    def _form(self) -> str:
        """Describe a class of this kind by a method's signature in the library; "a class or a function" where any object will
        do.
        """
        for component in self.names().values() if self.makes else ():
            for method in self.makes if inspect.isclass(component) else ():
                if method in vars(component):
                    return f"a class with {method}({', '.join(inspect.signature(getattr(component, method)).parameters)})"
        return "a class or a function"

    def hint(self, name: str, component: Component) -> str:
        """Explain what to write instead where a function is named in place of a class; an empty text where that is not the
        mistake.
        """
        if ":" not in name or not self.makes or not inspect.isfunction(component):
            return ""
        file, called = name.rpartition(":")[0], component.__name__
        others = [f"{file}:{other}" for other in defined(file, self.makes, self.arguments)] if file.endswith(".py") else []
        return (
            f". The function '{called}' would have to make the {self.kind}, not to be it: write {self._form()}"
            f"{', or name ' + ', '.join(others) if others else ''}"
        )

    def _check_class(self, component: Component, name: str, key: str) -> None:
        """Raise UserError for a class whose objects are not of this kind, as far as this can be seen without building one."""
        if not inspect.isclass(component) or not self.makes:
            return
        found = [method for method in self.makes if any(method in vars(base) for base in component.__mro__)]
        if not found:
            wanted = " or ".join(f"'{method}'" for method in self.makes)
            raise UserError(f"what '{name}' makes is no {self.kind}: it has no {wanted}", key=key)
        if found == ["__call__"] and self.arguments is not None and not _takes(component.__call__, 1 + self.arguments):
            raise UserError(f"what '{name}' makes is no {self.kind}: it is not called with {self.arguments} arguments", key=key)

    def check_made(self, made: Any, name: str, key: str) -> None:
        """Raise UserError for an object that is not of this kind, built by a function that is named by its path."""
        if ":" in name and self.makes and not any(hasattr(made, method) for method in self.makes):
            raise UserError(f"what '{name}' makes is no {self.kind}: it is a {type(made).__name__}", key=key)


def _takes(function: Callable[..., Any], count: int) -> bool:
    try:
        inspect.signature(function).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:  # it has no signature to be read
        return True
    return True


@cache
def _scan(package: str, kind: str) -> dict[str, Component]:
    found: dict[str, Component] = {}
    root = importlib.import_module(package)
    modules = [f"{package}.{m.name}" for m in pkgutil.iter_modules(root.__path__)] if hasattr(root, "__path__") else []
    for module in [importlib.import_module(name) for name in modules] or [root]:
        for name in getattr(module, "__all__", ()):
            words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
            found[words.removesuffix(f"_{kind}")] = getattr(module, name)
    return found


def by_path(path: str, key: str, library: str) -> Component:
    """Import the class or function ``package.module:Name`` or ``path/to/file.py:Name``. Raises UserError, naming ``key``, where
    there is none, or where its code is not trusted (``egd.config.trust``). Components that the package ``library`` defines are
    trusted.
    """
    place, _, name = path.rpartition(":")
    if is_pythons_own(place):
        raise UserError(f"'{path}' is a part of Python's standard library, not a component", key=key)
    inside = not place.endswith(".py") and _within(place, library)
    if not inside:
        require_trust(path, key)
    try:
        module = _load_file(place) if place.endswith(".py") else importlib.import_module(place)
    except SyntaxError as error:
        raise UserError(f"'{path}': {error.filename}, line {error.lineno}, is not Python: {error.msg}", key=key) from error
    except (ImportError, FileNotFoundError, TypeError, ValueError) as error:
        remedy = "" if isinstance(error, FileNotFoundError) else "; is it on PYTHONPATH?"
        raise UserError(f"cannot import '{place}' of '{path}': {error}{remedy}", key=key) from error
    if not hasattr(module, name):
        public = {n: v for n, v in vars(module).items() if not n.startswith("_")}
        own = [n for n, v in public.items() if callable(v) and getattr(v, "__module__", None) == module.__name__]
        raise UserError(f"'{place}' has no '{name}'; {nearest(name, own or public)}", key=key)
    component: Component = getattr(module, name)
    if not callable(component) or inspect.isbuiltin(component) or inspect.ismodule(component):
        raise UserError(f"'{path}' is {component!r}, not a class or a function", key=key)
    if inside and not _within(getattr(component, "__module__", ""), library):  # the library only imports it
        require_trust(path, key)
    return component


def _within(module: str, package: str) -> bool:
    """Return whether a dotted module name lies in a package. ``package./../file.py`` does not: as a path it may lead
    anywhere.
    """
    return f"{module}.".startswith(f"{package}.") and all(part.isidentifier() for part in module.split("."))


def loaded(path: str) -> tuple[str, str] | None:
    """Return the module and the name of a component that ``by_path`` has imported before; None for any other text."""
    place, _, name = path.rpartition(":")
    module = _module_name(Path(place)) if place.endswith(".py") else place
    return (module, name) if callable(getattr(sys.modules.get(module), name, None)) else None


def _module_name(file: Path) -> str:
    resolved = file.expanduser().resolve()
    return f"egd_user_{resolved.stem}_{abs(hash(resolved))}"


def _load_file(place: str) -> Any:
    file = Path(place).expanduser().resolve()
    name = _module_name(file)
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


def parameters(component: Component) -> dict[str, inspect.Parameter]:
    """Return the constructor's parameters by name, without ``*args`` and ``**kwargs``."""
    open_ended = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {n: p for n, p in inspect.signature(component).parameters.items() if p.kind not in open_ended}


def validate(registry: Registry, spec: Spec, parts: set[str], key: str) -> Component:
    """Return the component after checking the settings against its type hints. Raises UserError naming ``key`` and the
    setting.
    """
    component = registry.find(spec.name, key)
    _settings(registry, component, spec, parts, key, lambda r, s, k: validate(r, s, parts, k))
    return component


def build(registry: Registry, spec: Spec, parts: Mapping[str, Any], key: str) -> Any:
    """Build the component from its settings and from those of ``parts`` that its constructor names; a setting wins over a
    part.
    """
    component = registry.find(spec.name, key)
    wanted = {name: parts[name] for name in parameters(component) if name in parts}
    settings = _settings(registry, component, spec, set(parts), key, lambda r, s, k: build(r, s, parts, k))
    made = component(**{**wanted, **settings})
    registry.check_made(made, spec.name, key)
    return made


def bind(registry: Registry, spec: Spec, parts: set[str], key: str) -> Component:
    """Return the function with its settings filled in; ``parts`` are the arguments that it is called with later."""
    component = registry.find(spec.name, key)
    settings = _settings(registry, component, spec, parts, key, lambda r, s, k: build(r, s, {}, k))
    return partial(component, **settings) if settings else component


def wanted_parts(registry: Registry, spec: Spec, parts: set[str], key: str) -> set[str]:
    """Return those of ``parts`` that the component, or a component nested in its settings, takes."""
    component = registry.find(spec.name, key)
    wanted = (set(parameters(component)) & parts) - set(spec.settings)
    inner: list[set[str]] = []
    _settings(registry, component, spec, parts, key, lambda r, s, k: inner.append(wanted_parts(r, s, parts, k)))
    return wanted.union(*inner)


Make = Callable[[Registry, Spec, str], Any]


def _settings(registry: Registry, component: Component, spec: Spec, parts: set[str], key: str, make: Make) -> dict[str, Any]:
    known = parameters(component)
    for name in spec.settings:
        if name not in known:
            options = [k for k in known if k not in parts] or ["(it has no settings)"]
            raise UserError(f"'{spec.name}' has no setting '{name}'; {nearest(name, options)}", key=f"{key}.{name}")
    for name, parameter in known.items():
        if name not in spec.settings and name not in parts and parameter.default is inspect.Parameter.empty:
            raise UserError(
                f"'{spec.name}' needs '{name}', which is neither a setting given nor a part supplied here "
                f"({', '.join(sorted(parts))}){registry.hint(spec.name, component)}",
                key=f"{key}.{name}",
            )
    hints = _hints(component)
    return {name: _setting(hints.get(name, Any), value, f"{key}.{name}", make) for name, value in spec.settings.items()}


def _setting(hint: Any, value: Any, key: str, make: Make) -> Any:
    kind, many = _kind(hint)
    if kind is None or value is None:
        return _check(hint, value, key)
    registry = Registry.of(kind)
    if not many:
        return make(registry, Spec.of(value, key), key)
    if not isinstance(value, list | tuple):
        raise UserError(f"{value!r} is not a list of components", key=key)
    return tuple(make(registry, Spec.of(v, f"{key}.{i}"), f"{key}.{i}") for i, v in enumerate(value))


def _kind(hint: Any, many: bool = False) -> tuple[ComponentKind | None, bool]:
    """Return the contract that a type hint names, None without one, and whether the hint asks for a sequence of such
    components.
    """
    if get_origin(hint) is Annotated:
        return next((m for m in hint.__metadata__ if isinstance(m, ComponentKind)), None), many
    sequence = inspect.isclass(get_origin(hint)) and issubclass(get_origin(hint), Sequence)
    found = (_kind(arg, many or sequence) for arg in get_args(hint) if not isinstance(arg, list))
    return next((f for f in found if f[0] is not None), (None, False))


@cache
def _hints(component: Component) -> dict[str, Any]:
    try:
        return get_type_hints(component.__init__ if inspect.isclass(component) else component, include_extras=True)
    except NameError:  # hints that exist for type checkers only: settings are then taken as they are
        return {}


def _check(hint: Any, value: Any, key: str) -> Any:
    if isinstance(value, bool) and hint in (int, float):  # Python counts booleans as numbers
        raise UserError(f"{value!r} does not fit: input should be a number", key=key)
    try:
        return _adapter(hint).validate_python(value)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        wrong, where = (first["input"], ".".join(map(str, (key, *first["loc"])))) if _is_section(hint) else (value, key)
        raise UserError(f"{shown(wrong)} does not fit: {first['msg']}", key=where) from None


@cache
def _adapter(hint: Any) -> pydantic.TypeAdapter[Any]:
    config = None if _is_section(hint) else pydantic.ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
    return pydantic.TypeAdapter(hint, config=config)


def _is_section(hint: Any) -> bool:
    """Return whether a type hint is a pydantic model, which has a configuration of its own."""
    return inspect.isclass(hint) and issubclass(hint, pydantic.BaseModel)
