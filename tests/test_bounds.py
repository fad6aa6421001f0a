"""Every number that a recipe may give has bounds: of all sections, and of all components' settings, those to come included."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
from pydantic import TypeAdapter, ValidationError

import egd
import rl
from egd.config.base import Strict
from egd.config.components import Registry, build, parameters
from egd.errors import UserError

ABSURD = [float("nan"), float("inf"), -float("inf"), 1e30, -1e30, True, False, "nan", "inf", 10**400]
SUPPLIED = {("critic", "state"), ("critic", "action")}
"""Numbers that no recipe gives."""


def modules() -> list[Any]:
    found = [m.name for root in (egd, rl) for m in pkgutil.walk_packages(root.__path__, f"{root.__name__}.")]
    return [importlib.import_module(name) for name in found if not name.endswith("__main__")]


def numbers(hint: Any) -> Iterator[Any]:
    """The numeric types within a type, each with what is said about it."""
    bare = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if bare in (int, float):
        yield hint
    elif bare is not hint:
        yield from numbers(bare)
    else:
        for part in get_args(hint):
            yield from numbers(part) if not isinstance(part, list) else ()


def of_sections(model: type[Strict] = Strict) -> Iterator[tuple[str, Any]]:
    for section in model.__subclasses__():
        if section.__module__.partition(".")[0] not in ("egd", "rl"):  # a test's own
            continue
        for name, field in section.model_fields.items():
            hint = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
            yield from ((f"{section.__module__}.{section.__name__}.{name}", found) for found in numbers(hint))
        yield from of_sections(section)


def of_components(found: list[Any]) -> Iterator[tuple[str, Any]]:
    registries = {registry for module in found for registry in vars(module).values() if isinstance(registry, Registry)}
    for registry in registries:
        for name, component in registry.names().items():
            if not (inspect.isclass(component) or inspect.isfunction(component)):  # a data set of an experiment's, say
                continue
            hints = get_type_hints(component.__init__ if isinstance(component, type) else component, include_extras=True)
            wanted = [p for p in parameters(component) if (registry.kind, p) not in SUPPLIED]
            yield from ((f"{registry.kind} {name}.{p}", each) for p in wanted for each in numbers(hints[p]))


def test_every_number_of_a_recipe_has_bounds() -> None:
    found = modules()
    all_of_them = dict([*of_sections(), *of_components(found)])
    assert len(all_of_them) > 250
    unbounded = []
    for place, hint in all_of_them.items():
        adapter = TypeAdapter(hint)
        for value in ABSURD:
            try:
                unbounded.append(f"{place}: {adapter.validate_python(value)!r:.20} of {value!r:.20}")
            except ValidationError:
                continue
    assert not unbounded, "\n".join(unbounded)


def number_of(scale: float = 1.0, count: int = 1) -> Any:
    return (scale, count)


@pytest.mark.parametrize(
    ("setting", "value"), [("scale", float("nan")), ("scale", float("inf")), ("scale", True), ("count", True)]
)
def test_a_setting_of_a_strangers_component_is_a_finite_number(setting: str, value: Any) -> None:
    from egd.config.components import Spec

    with pytest.raises(UserError) as info:
        build(Registry("thing", "egd.energies"), Spec(f"{__name__}:number_of", {setting: value}), {}, "thing")
    assert info.value.key == f"thing.{setting}"
