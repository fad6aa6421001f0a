"""Steps that all domains share when they plan jobs from a recipe: its tasks, its budgets, the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch

from egd.config.base import NONE, Sections, Tree, blamed_on, merge, override
from egd.errors import UserError, nearest
from egd.runs.bases import matching
from egd.runs.experiment import Options
from egd.runs.grid import refuse_key

RECIPE_KEYS = ("description", "tasks", "methods", "budgets", "default_budget")
"""The keys of a recipe that choose between settings; all other keys are settings."""


def listed_tasks(recipe: Mapping[str, Any], options: Options, canonical: Callable[[str], str] = str) -> dict[str, Tree]:
    """Return the recipe's tasks with their overrides, or those that ``--task`` selects by name or shell pattern. A resolved
    config is a recipe with one ``task``.

    ``canonical`` maps a user's name for a task to the task's name. Raises UserError where the recipe names no task.
    """
    table = recipe.get("tasks")
    listed: dict[str, Tree] = {recipe["task"]: {}} if "task" in recipe else {}
    if isinstance(table, list):
        listed |= {str(name): {} for name in table}
    else:
        listed |= mappings(recipe, "tasks", options.source)
    if not listed:
        raise UserError("tasks: the recipe names no task", key=options.source)
    try:
        named = {canonical(name): over for name, over in listed.items()}
    except UserError as error:
        raise UserError(f"tasks: {error}", key=options.source) from None
    asked = [each for name in options.tasks for each in matching(name, list(named), "--task")]
    wanted = [canonical(name) for name in asked] or list(named)
    return {name: named.get(name, {}) for name in wanted}


def mappings(tree: Mapping[str, Any], key: str, source: str) -> dict[str, Tree]:
    """Return a section whose values are mappings or null; {} where the recipe has no such section. Raises UserError for another
    form.
    """
    table = tree.get(key) or {}
    if not isinstance(table, Mapping):
        raise UserError(f"{key}: got {table!r}; write 'name: {{setting: value}}' lines", key=source)
    for name, value in table.items():
        if not isinstance(value, Mapping | None):
            raise UserError(f"{key}.{name}: got {value!r}; write {{setting: value}}, or {{}} for no other settings", key=source)
    return {str(name): dict(value or {}) for name, value in table.items()}


def without_nulls(tree: Mapping[str, Any], *keys: str) -> Tree:
    """Remove the null entries from these sections: --set, a budget or a method leaves an entry out by null."""
    tables = {key: tree[key] for key in keys if isinstance(tree.get(key), Mapping)}
    return {**tree, **{key: {name: v for name, v in table.items() if v is not None} for key, table in tables.items()}}


def chosen_budget(recipe: Mapping[str, Any], options: Options) -> Tree:
    """Return the overrides of ``--budget``, or of the recipe's ``default_budget``. Raises UserError for an unknown budget."""
    budgets = mappings(recipe, "budgets", options.source)
    name = options.budget or recipe.get("default_budget")
    if name is None:
        return {}
    if name not in budgets:
        known = nearest(name, budgets) if budgets else "this recipe has no 'budgets'"
        raise UserError(f"no budget is called '{name}'; {known}", key="--budget" if options.budget else "default_budget")
    return budgets[name]


def resolve(recipe: Mapping[str, Any], task: str, over: Mapping[str, Any], options: Options, sections: Sections = NONE) -> Tree:
    """Return the settings of one task. Later layers win: the recipe, the budget, the budget's entries for matching tasks, the
    task's overrides, ``--set``, ``--seed`` and ``--device``. ``sections`` are as in ``merge``.
    """
    for setting in options.settings:
        key = setting.partition("=")[0].strip()
        refuse_key(key, "--set", {"seed": options.seed is not None, "device": options.device != "auto"})
    tree: Tree = {k: v for k, v in recipe.items() if k not in RECIPE_KEYS}
    budget = chosen_budget(recipe, options)
    own = mappings(budget, "tasks", options.source)
    layers = [{k: v for k, v in budget.items() if k not in RECIPE_KEYS}]
    layers += [layer for pattern, layer in own.items() if fnmatchcase(task, pattern)]
    for layer in (*layers, over):
        tree = merge(tree, layer, sections)
    tree = override(tree, options.settings, sections)
    tree["task"] = task
    if options.seed is not None:
        tree["seed"] = options.seed
    tree["device"] = pick_device(tree.get("device", "auto") if options.device == "auto" else options.device)
    return tree


def given(options: Options) -> dict[str, str]:
    """Return the dotted keys that the command line sets, each with the option that sets it."""
    keys = {setting.partition("=")[0].strip(): "--set" for setting in options.settings}
    return keys | dict.fromkeys(options.grid, "--grid")


@contextmanager
def blaming(options: Options) -> Iterator[None]:
    """Add the option to a UserError about a key that the command line set."""
    try:
        yield
    except UserError as error:
        in_file = error.key == options.source  # then the message begins with the key
        option = blamed_on(str(error).partition(":")[0] if in_file else error.key or "", given(options))
        if option is None:
            raise
        raise UserError(str(error), key=option if in_file else f"{option} {error.key}") from None


def pick_device(name: Any) -> str:
    """Return the device's name; ``auto`` is a GPU where there is one. Raises UserError for a device that is not available."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise UserError(f"{name!r} is not a device; use auto, cpu or cuda", key="--device")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device is available here; use --device cpu", key="--device")
    return str(name)


def summary_line(component: Any) -> str:
    """Return the first paragraph of a component's docstring in one line, for ``egd list``."""
    return " ".join((component.__doc__ or "").strip().split("\n\n")[0].split())
