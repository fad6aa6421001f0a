"""Recipes that build on others: ``base: aepo.yaml``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from egd.config.base import Sections, Tree, merge, read_yaml
from egd.config.trust import RUN_CONFIG
from egd.errors import UserError, nearest
from egd.runs import experiment as experiments

KEY = "base"
LAYERS = ("tasks", "methods", "budgets")
"""Sections of a recipe whose entries have the same keys as a recipe."""
LONGEST = 10
"""The largest number of recipes in one chain of bases."""


def read_recipe(path: Path, *, load: bool = True) -> Tree:
    """Read a recipe and merge it into its base, the base's own base, and so on. Raises UserError where a base is missing,
    builds on this recipe, or is the ``config.yaml`` of a run. Without ``load`` the experiment is not imported, and its rules
    for merging components are not applied.
    """
    first, *others = _chain(path)
    if not others:
        return first
    trees = [first, *others]
    named = [tree["experiment"] for tree in trees if "experiment" in tree]
    sections = experiments.sections(experiments.load(named[0], str(path))) if load and named else {}
    found = trees.pop()
    while trees:
        found = merge_recipes(found, trees.pop(), sections)
    return found


def _chain(path: Path) -> list[Tree]:
    """Read the recipe, its base, the base's base, and so on. Returns their settings in this order, each without the key
    ``base``.
    """
    trees, seen = [read_yaml(path)], [path.resolve()]
    while KEY in trees[-1]:
        base = trees[-1].pop(KEY)
        if not isinstance(base, str) or not base:
            raise UserError(f"base: got {base!r}; write the path of a recipe, relative to this one", key=str(path))
        if path.name.lower() == RUN_CONFIG or Path(base).name.lower() == RUN_CONFIG:
            raise UserError(f"base: {base}: the {RUN_CONFIG} of a run stands alone; build on its recipe", key=str(path))
        beside = path.parent / Path(base).expanduser()
        if not beside.exists():
            near = nearest(Path(base).name, [other.name for other in beside.parent.glob("*.yaml")])
            raise UserError(f"base: there is no {beside}; {near}", key=str(path))
        if beside.resolve() in seen or len(seen) == LONGEST:
            circle = " -> ".join(file.name for file in [*seen, beside])
            raise UserError(f"base: these recipes build on each other without end: {circle}", key=str(path))
        path = beside
        trees.append(read_yaml(path))
        seen.append(path.resolve())
    return trees


def merge_recipes(base: Mapping[str, Any], over: Mapping[str, Any], sections: Sections) -> Tree:
    """Merge two recipes, or two entries of their tasks, methods or budgets; ``over`` wins. A list of tasks in ``over`` selects
    from the tasks of the base.
    """
    below, above = ({key: value for key, value in tree.items() if key not in LAYERS} for tree in (base, over))
    result = merge(below, above, sections)
    for layer in LAYERS:
        old, new = base.get(layer), over.get(layer)
        if isinstance(new, list) and isinstance(old, Mapping):
            result[layer] = {name: old.get(name) for pattern in new for name in matching(str(pattern), list(old), layer)}
        elif isinstance(new, Mapping) and isinstance(old, Mapping):
            result[layer] = {name: _entry(old.get(name), new.get(name), sections) for name in {**old, **new}}
        elif layer in base or layer in over:
            result[layer] = old if new is None else new
    return result


def _entry(old: Any, new: Any, sections: Sections) -> Any:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return merge_recipes(old, new, sections)
    return old if new is None else new


def matching(name: str, known: Sequence[str], key: str) -> list[str]:
    """Return the known names that match a shell pattern, or the name itself where it is known or not a pattern. Raises
    UserError for a pattern that matches none.
    """
    if name in known or not any(sign in name for sign in "*?["):
        return [name]
    if found := [each for each in known if fnmatchcase(each, name)]:
        return found
    raise UserError(f"no task here matches '{name}'; {nearest(name.strip('*?'), known)}", key=key)
