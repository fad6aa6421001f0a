"""Conversion of a recipe's tree to the typed configuration of a run: methods, agents, variants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from egd.config.base import Sections, Tree, merge, sections_of, validate
from egd.errors import UserError, nearest
from egd.runs.experiment import Options
from egd.runs.recipe import chosen_budget, mappings, without_nulls
from egd.runs.safe_names import check_names, folder_name
from rl.agents import AGENTS, agent_class
from rl.config import RunConfig
from rl.data.generators import check_generator
from rl.runs.old_keys import refuse_old_keys
from rl.tasks import find_task


def listed_methods(recipe: Mapping[str, Any], tasks: Mapping[str, Tree], options: Options) -> dict[str, Tree]:
    """Return the changes of each method in the recipe, by name, for the methods of ``--method`` or for all; {'': {}} where the
    recipe has none.

    A budget may change methods, too, and so may each of the ``tasks`` (``task_settings``). Raises UserError for a name that
    the recipe does not have.
    """
    budget = chosen_budget(recipe, options)
    own, over = (mappings(tree, "methods", options.source) for tree in (recipe, budget))
    listed = {name: merge(own.get(name, {}), over.get(name, {}), SECTIONS) for name in {**own, **over}}
    for name in listed:
        folder_name(name, "methods")
    asked = [(name, "--method") for name in options.methods]
    asked += [(name, f"tasks.{task}.methods") for task, tree in tasks.items() for name in _own_methods(task, tree, options)]
    for name, key in asked:
        if name not in listed:
            known = nearest(name, listed) if listed else "this recipe has no 'methods'"
            raise UserError(f"no method is called '{name}'; {known}", key=key)
    wanted = options.methods or list(listed)
    return {name: listed[name] for name in wanted} or {"": {}}


def _sections() -> Sections:
    found: dict[str, set[str]] = {}
    for agent in AGENTS.values():
        for key, names in sections_of(agent.Config).items():
            found[key] = found.get(key, set()) | names
    return found


SECTIONS = _sections()
"""Sections of any agent that name a component, in the form that ``merge`` takes."""


def task_settings(task: tuple[str, Tree], method: tuple[str, Tree], options: Options) -> Tree:
    """Merge the changes of a method, of a task, and of the task for this method (under its ``methods``), in this order.

    Task and method are each given as a name and its changes.
    """
    over = {key: value for key, value in task[1].items() if key != "methods"}
    return merge(merge(method[1], over, SECTIONS), _own_methods(*task, options).get(method[0], {}), SECTIONS)


def _own_methods(task: str, tree: Tree, options: Options) -> dict[str, Tree]:
    return mappings(tree, "methods", f"{options.source}: tasks.{task}")


def for_method(tree: Tree, name: str, options: Options) -> Tree:
    """Return the tree as the method of that name.

    Where a method or an option chooses the agent, sections that this agent lacks and other agents have are removed.
    """
    if not (name or any(setting.startswith("agent=") for setting in options.settings)):
        return tree
    known = agent_of(tree).Config.model_fields
    others = {key for agent in AGENTS.values() for key in agent.Config.model_fields}
    kept = {key: value for key, value in tree.items() if key in known or key not in others}
    return kept | {"method": name} if name else kept


def check_sections(methods: Mapping[str, set[str]], options: Options) -> None:
    """Raise UserError for a section of ``--set`` that no method has, and for one of ``--grid`` that any method lacks.

    The cells of such a grid would be the same run. ``methods`` maps each method to its sections.
    """
    for key, wanted, given in (("--set", any, options.settings), ("--grid", all, options.grid)):
        for setting in given:
            section = setting.partition("=")[0].strip().partition(".")[0]
            if not wanted(section in known for known in methods.values()):
                lacking = ", ".join(name for name, known in methods.items() if section not in known)
                having = ", ".join(name for name, agent in AGENTS.items() if section in agent.Config.model_fields)
                remedy = f"agents that do: {having}" if having else "see docs/recipes.md for those there are"
                raise UserError(f"'{setting}': {lacking} has no '{section}'; {remedy}", key=key)


def agent_of(tree: Mapping[str, Any]) -> Any:
    """Return the class of ``agent``. Raises UserError where there is none."""
    return agent_class(str(tree.get("agent", RunConfig.model_fields["agent"].default)))


def typed(tree: Tree, source: str, given: Mapping[str, str] | None = None) -> RunConfig:
    """Return the checked configuration of the recipe's agent; ``given`` as in ``validate``.

    A variant takes the settings it does not give from ``guidance``.
    """
    refuse_old_keys(tree, source)
    agent = agent_of(tree)
    tree = without_nulls(agent.Config.completed(tree), "variants")
    if "variants" in tree:
        variants, headline = mappings(tree, "variants", source), tree.get("guidance") or {}
        if isinstance(headline, Mapping):
            variants = {name: merge(headline, over) for name, over in variants.items()}
        tree = {**tree, "variants": variants}
    config: RunConfig = validate(agent.Config, tree, source, given)
    check_names(config)
    for key in ("variants", "selections"):
        if wrong := [name for name in getattr(config, key, {}) if "@" in name]:
            raise UserError(f"'{wrong[0]}' cannot be the name of a policy: @ parts that from a guidance scale", key=key)
    agent.check(config)
    if config.data.generator is not None:
        check_generator(config.data.generator.spec, "data.generator")
    rewards = config.data.rewards(find_task(config.task))
    explicit = {"reward_scale": rewards.scale, "reward_shift": rewards.shift}
    return config.model_copy(update={"data": config.data.model_copy(update=explicit)})
