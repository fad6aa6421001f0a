"""Recipes: YAML in, typed and frozen objects out. Every complaint names the key, the value and the nearest valid name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict

from egd.components import Spec
from egd.errors import UserError, nearest

Tree = dict[str, Any]


class Strict(BaseModel):
    """A frozen section of a recipe that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ComponentConfig(BaseModel):
    """``{name: first_order, variance: false}``, or ``first_order`` alone: a component and its settings."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str

    @pydantic.model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def spec(self) -> Spec:
        """For ``egd.components.build``."""
        return Spec(self.name, dict(self.model_extra or {}))


def read_yaml(path: Path) -> Tree:
    """A YAML mapping. UserError when the file is missing, is not YAML or not a mapping."""
    try:
        tree = yaml.safe_load(path.read_text())
    except OSError as error:
        folders = [folder for folder in (path.parent, Path("recipes")) if any(folder.glob("*.yaml"))]
        near = "is the folder right?"
        if folders:
            elsewhere = "" if folders[0] == path.parent else f"in {folders[0]}/: "
            near = elsewhere + nearest(path.name, [p.name for p in folders[0].glob("*.yaml")])
        raise UserError(f"cannot read {path}: {error.strerror}; {near}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} must hold 'key: value' lines, found {type(tree).__name__}")
    return tree


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> Tree:
    """Deep merge, ``over`` winning. A component of another name replaces the whole of the old one, settings included."""
    if isinstance(over.get("name"), str) and over["name"] != base.get("name", over["name"]):
        return dict(over)
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        if isinstance(value, Mapping) and isinstance(old, str):  # a component given by its name alone
            old = {"name": old}
        result[key] = merge(old, value) if isinstance(value, Mapping) and isinstance(old, Mapping) else value
    return result


def override(tree: Mapping[str, Any], settings: Sequence[str]) -> Tree:
    """Apply ``a.b=c`` overrides, values read as YAML. UserError for one without '='."""
    result = dict(tree)
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path:
            raise UserError(f"'{setting}' is not of the form a.b=c", key="--set")
        try:
            value: Any = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        for key in reversed(path.strip().split(".")):
            value = {key: value}
        result = merge(result, value)
    return result


T = TypeVar("T", bound=BaseModel)


def validate(model: type[T], tree: Mapping[str, Any], source: str) -> T:
    """The typed object. UserError listing every wrong key of the recipe ``source``."""
    try:
        return model.model_validate(tree)
    except pydantic.ValidationError as error:
        first = {(p["loc"][-1], p["type"], repr(p["input"])): p for p in reversed(error.errors())}  # one of repeated ones
        lines = [_explain(model, dict(problem)) for problem in reversed(first.values())]
        raise UserError("\n".join(lines), key=source) from None


def _explain(model: type[BaseModel], problem: dict[str, Any]) -> str:
    loc = [str(part) for part in problem["loc"]]
    path = ".".join(loc)
    if problem["type"] == "extra_forbidden":
        return f"{path}: unknown key; {nearest(loc[-1], _fields(model, loc[:-1]))}"
    if problem["type"] == "missing":
        return f"{path}: required and missing"
    return f"{path}: got {problem['input']!r}; {problem['msg'][:1].lower()}{problem['msg'][1:]}"


def _fields(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """The valid names below a path, following nested models through Optional and dict."""
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
    """Readable YAML, keys in their own order."""
    text: str = yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True, width=120)
    return text
