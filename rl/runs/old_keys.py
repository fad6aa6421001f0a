"""Keys of recipes of earlier versions, refused with the lines to write in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from egd.config.base import Tree
from egd.config.yaml_text import parse_or_text
from egd.errors import UserError

SHOWN = 12
"""Maximum number of lines shown, so that they fit a screen."""
LAYERS = ("tasks", "methods", "budgets")
"""Sections whose entries have the same keys as the recipe."""


def refuse_old_keys(recipe: Mapping[str, Any], source: str) -> None:
    """Raise UserError where ``kind`` chooses an agent, a critic or an actor, or ``settings`` holds those of a critic."""
    places: dict[str, list[str]] = {}
    for path, new in _rewritten(recipe):
        places.setdefault(f"{path.rpartition('.')[2]}: {_flow(new)}", []).append(path.rpartition(".")[0])
    if lines := [f"  {line}{_where(paths)}" for line, paths in places.items()]:
        more = [f"  and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
        head = "components are chosen by 'name' (the agent by 'agent'), and settings stand beside it; write"
        raise UserError("\n".join([head, *lines[:SHOWN], *more]), key=source)


def refuse_old_options(settings: Sequence[str], option: str) -> None:
    """Raise UserError for the same keys in options ``a.b=c`` of --set and --grid."""
    for setting in settings:
        key, _, value = setting.partition("=")
        key = key.strip()
        if key == "kind":
            new = [f"agent={value}"]
        elif key in ("critic.kind", "actor.kind"):
            new = [f"{key.removesuffix('kind')}name={value}"]
        elif key.startswith("critic.settings."):
            new = [f"critic.{key.removeprefix('critic.settings.')}={value}"]
        elif key == "critic.settings":
            own = parse_or_text(value, key)
            named = own if isinstance(own, Mapping) else {"KEY": "VALUE"}
            new = [f"critic.{name}={_flow(each)}" for name, each in named.items()]
        elif key in ("critic", "actor") and (found := dict(_rewritten({key: parse_or_text(value, key)}))):
            new, key = [f"{key}={_flow(found[key])}"], "kind" if "kind" in value else "settings"
        else:
            continue
        written = " ".join(f"{option} {_quoted(each)}" for each in new)
        raise UserError(f"'{key}' is a key of earlier versions; write {written}", key=option)


def _where(paths: Sequence[str]) -> str:
    """Return a comment that says where a line belongs, if not at the top."""
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"   # in {paths[0] or 'the recipe'}{more}" if any(paths) else ""


def _rewritten(tree: Mapping[str, Any], head: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (key, new value) for the old keys of a recipe, and of its tasks, methods and budgets."""
    if "kind" in tree:
        yield f"{head}agent", tree["kind"]
    for section in ("critic", "actor"):
        old = tree.get(section)
        if isinstance(old, Mapping) and ("kind" in old or (section == "critic" and "settings" in old)):
            yield f"{head}{section}", _renamed(old)
    for layer in LAYERS:
        entries = tree.get(layer)
        for name, entry in entries.items() if isinstance(entries, Mapping) else ():
            if isinstance(entry, Mapping):
                yield from _rewritten(entry, f"{head}{layer}.{name}.")


def _renamed(old: Mapping[str, Any]) -> Tree:
    named = {"name": old["kind"]} if "kind" in old else {}
    own = old.get("settings")
    others = {key: value for key, value in old.items() if key not in ("kind", "settings")}
    return named | others | (dict(own) if isinstance(own, Mapping) else {})


def _flow(value: Any) -> str:
    """Return the value as YAML in one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...")


def _quoted(setting: str) -> str:
    return f'"{setting}"' if " " in setting or "{" in setting else setting
