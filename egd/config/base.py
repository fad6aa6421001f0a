"""Recipes: YAML is read into typed, frozen objects. Every error names the key, the value and the nearest valid name."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, Union, get_args, get_origin

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict

from egd.config.components import Spec
from egd.config.yaml_text import parse, parse_or_text, read_text
from egd.errors import UserError, nearest, shown

Tree = dict[str, Any]
NONE: Mapping[str, Any] = MappingProxyType({})


class Strict(BaseModel):
    """A frozen section of a recipe that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ComponentConfig(BaseModel):
    """A component with its settings: ``{name: first_order, variance: false}``, or ``first_order`` alone."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str

    @pydantic.model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def spec(self) -> Spec:
        """The specification for ``egd.config.components.build``."""
        return Spec(self.name, dict(self.model_extra or {}))


@dataclass(frozen=True)
class Mark:
    """Mark of a setting: ``seed: Annotated[int, MARK] = 0``."""

    meaning: str


EXECUTION = Mark("changes how a run is executed, and not its result: a run may resume with another value")


def marked(config: BaseModel, mark: Mark) -> dict[str, Any]:
    """Return the settings with this mark, in the form of pydantic's ``exclude``: {key: True, section: {key: True}}."""
    found: dict[str, Any] = {}
    kinds = [kind for kind in type(config).__mro__ if issubclass(kind, BaseModel)]  # a subclass may give a new default alone
    for name in type(config).model_fields:
        value = getattr(config, name)
        if any(name in kind.model_fields and mark in kind.model_fields[name].metadata for kind in kinds):
            found[name] = True
        elif isinstance(value, BaseModel) and (within := marked(value, mark)):
            found[name] = within
    return found


def execution_keys(config: BaseModel) -> frozenset[str]:
    """Return the dotted keys of the settings that change how a run is executed, and not its result."""
    return frozenset(flatten(marked(config, EXECUTION)))


def flatten(tree: Mapping[str, Any], head: str = "") -> dict[str, Any]:
    """Return a nested mapping as one level with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{head}{key}."))
        else:
            flat[head + str(key)] = value
    return flat


def read_yaml(path: Path) -> Tree:
    """Read a YAML mapping. Raises UserError where the file is missing, not YAML or not a mapping."""
    try:
        text = read_text(path)
    except OSError as error:
        there = {folder: [p.name for p in folder.glob("[!.]*.yaml")] for folder in (path.parent, Path("recipes"))}
        folder = next((folder for folder, names in there.items() if names), None)
        near = "is the folder right?"
        if folder is not None:
            near = ("" if folder == path.parent else f"in {folder}/: ") + nearest(path.name, there[folder])
        raise UserError(f"cannot read {path}: {error.strerror}; {near}") from None
    tree = parse(text, str(path))
    if not isinstance(tree, dict):
        raise UserError(f"{path} must hold 'key: value' lines, found {type(tree).__name__}")
    return tree


Sections = Mapping[str, Collection[str]]
"""Sections of a recipe that choose a component, each with the keys that are not the component's own settings."""


def merge(base: Mapping[str, Any], over: Mapping[str, Any], sections: Sections = NONE, kept: Collection[str] = ()) -> Tree:
    """Merge deeply; ``over`` wins. Where ``over`` names another component, the old component's settings are dropped, except the
    keys ``kept``. For a section in ``sections`` these are the keys listed there.
    """
    other = isinstance(over.get("name"), str) and over["name"] != base.get("name", over["name"])
    result = {key: value for key, value in base.items() if not other or key in kept}
    for key, value in over.items():
        old, new = result.get(key), value
        if isinstance(value, Mapping) or key in sections:
            old, new = _named(old), _named(new)
        if isinstance(new, Mapping) and isinstance(old, Mapping):
            result[key] = merge(old, new, kept=sections.get(key, ()))
        else:
            result[key] = value
    return result


def _named(value: Any) -> Any:
    """Write a component that is given by its name alone as ``{name: ...}``."""
    return {"name": value} if isinstance(value, str) else value


def sections_of(model: type[BaseModel]) -> dict[str, set[str]]:
    """Return the sections of a model that choose a component and have further keys, which all their components share."""
    models = {key: _model_in(field.annotation) for key, field in model.model_fields.items()}
    return {key: set(found.model_fields) for key, found in models.items() if found and {"name"} < set(found.model_fields)}


def override(tree: Mapping[str, Any], settings: Sequence[str], sections: Sections = NONE) -> Tree:
    """Apply ``a.b=c`` overrides, whose values are YAML. Raises UserError for one of another form."""
    result = dict(tree)
    for setting in settings:
        path, equals, text = setting.partition("=")
        keys = keys_of(path.strip(), result) if equals else []
        if not keys:
            raise UserError(f"'{setting}' is not of the form a.b=c", key="--set")
        try:
            value: Any = parse_or_text(text, f"the value of {path.strip()}")
        except UserError as error:
            raise UserError(str(error), key="--set") from None
        for key in reversed(keys):
            value = {key: value}
        result = merge(result, value, sections)
    return result


def keys_of(path: str, tree: Mapping[str, Any]) -> list[str]:
    """Split a dotted path into keys. A name that contains dots is one key where the tree has it, or where it is in quotes.
    Returns [] for a path with an empty name.
    """
    words = [word.strip() for word in re.findall(r"\"[^\"]*\"|'[^']*'|[^.]+|(?<=\.)(?=\.|$)|^(?=\.|$)", path)]
    keys: list[str] = []
    here: Any = tree
    while words:
        known = here if isinstance(here, Mapping) else {}
        longest = range(len(words), 1, -1)
        count = next((n for n in longest if ".".join(words[:n]) in known), 1)
        key = ".".join(words[:count]) if count > 1 or words[0] in known else words[0].strip("\"'")
        keys, words, here = [*keys, key], words[count:], known.get(key)
    return keys if all(keys) else []


T = TypeVar("T", bound=BaseModel)


def validate(model: type[T], tree: Mapping[str, Any], source: str, given: Mapping[str, str] | None = None) -> T:
    """Return the typed settings. Raises UserError listing every wrong key with its origin: an option of the command line where
    ``given`` maps the dotted key to one, else ``source``.
    """
    try:
        return model.model_validate(tree)
    except pydantic.ValidationError as error:
        first = {(p["loc"][-1:], p["type"], repr(p["input"])): p for p in reversed(error.errors())}  # a union repeats errors
        problems = [dict(problem) for problem in reversed(first.values())]
        for problem in problems:
            problem["loc"] = _place(problem["loc"], tree, problem["type"])
        problems = [problem for problem in problems if not _follows(problem, problems)]
        options = [blamed_on(".".join(problem["loc"]), given or {}) or "" for problem in problems]
        lines = [_explain(model, problem) for problem in problems]
        if len(set(options)) == 1:
            raise UserError("\n".join(lines), key=options[0] or source) from None
        raise UserError("\n".join(f"{o} {line}".strip() for o, line in zip(options, lines, strict=True)), key=source) from None


def _place(loc: Sequence[str | int], tree: Any, kind: str) -> list[str]:
    """Return the keys that lead to an error, as the recipe has them, without pydantic's names for the members of a union."""
    parts: list[str] = []
    for i, part in enumerate(loc):
        inside = part in tree if isinstance(tree, Mapping) else isinstance(tree, list | tuple) and isinstance(part, int)
        if inside:
            parts, tree = [*parts, str(part)], tree[part]
        elif kind == "missing" and i == len(loc) - 1:
            parts.append(str(part))
    return parts or [str(part) for part in loc]


def _follows(problem: Mapping[str, Any], problems: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a list is too short only because of wrong items, which pydantic leaves out before it counts."""
    place = problem["loc"]
    return problem["type"] == "too_short" and any(
        len(other["loc"]) > len(place) and other["loc"][: len(place)] == place for other in problems
    )


def blamed_on(path: str, given: Mapping[str, str]) -> str | None:
    """Return the option of the command line that set this key, a section that contains it, or a key inside it; None without
    one.
    """
    for key, option in given.items():
        if (path and f"{path}.".startswith(f"{key}.")) or f"{key}.".startswith(f"{path}."):
            return option
    return None


def _explain(model: type[BaseModel], problem: dict[str, Any]) -> str:
    loc = problem["loc"]
    path = ".".join(loc)
    if problem["type"] == "extra_forbidden":
        return f"{path}: unknown key; {nearest(loc[-1], _fields(model, loc[:-1]))}"
    if problem["type"] == "missing":
        return f"{path}: required and missing"
    if problem["type"] == "too_short":
        return f"{path}: got {shown(problem['input'])}; give at least {problem['ctx']['min_length']}"
    return f"{path}: got {shown(problem['input'])}; {problem['msg'][:1].lower()}{problem['msg'][1:]}"


def _fields(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Return the valid keys below a path; nested models are followed through Optional and dict."""
    here: type[BaseModel] | None = model
    for part in path:
        field = None if here is None else here.model_fields.get(part)
        here = _model_in(field.annotation) if field is not None else here
    return list(here.model_fields) if here is not None else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) is not None or annotation is Union:
        return next((m for arg in get_args(annotation) if (m := _model_in(arg)) is not None), None)
    return None


def to_yaml(tree: Mapping[str, Any]) -> str:
    """Return readable YAML, with the keys in their own order."""
    text: str = yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True, width=120)
    return text
