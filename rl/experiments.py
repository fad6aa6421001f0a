"""Offline RL as an experiment of the command line: recipes to jobs, run folders to fresh evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from egd.components import validate as validate_component
from egd.config import Tree, merge, override, read_yaml, validate
from egd.errors import UserError, nearest
from egd.experiments import Job, Options, Row
from egd.phases import Phase, run_phase
from egd.posteriors.moments import DESCRIPTIONS
from egd.progress import Reporter
from egd.runs import RunFolder
from egd.samplers import SAMPLERS
from rl.agents import AGENTS
from rl.agents.aepo import AEPO, ENERGIES, OBJECTIVES, RULES, SCHEDULES, check_components
from rl.config import RunConfig
from rl.evaluator import Evaluator, scales
from rl.job import OfflineJob
from rl.loading import GENERATOR_PARTS, GENERATORS, load_data
from rl.results import rows, split_by_omega, statistics
from rl.tasks import find_task

RECIPE_KEYS = ("description", "tasks", "budgets", "default_budget")


class OfflineRL:
    """The entry point ``offline_rl`` of the group ``egd.experiments``."""

    def plan(self, recipe: Mapping[str, Any], options: Options) -> list[Job]:
        """One job for every task of the recipe, or for those of ``--task``."""
        return [self._job(self._resolve(recipe, task, options), options) for task in self._tasks(recipe, options)]

    def _tasks(self, recipe: Mapping[str, Any], options: Options) -> dict[str, Tree]:
        """Task -> its overrides in the recipe. A resolved config is a recipe of one task."""
        table = recipe.get("tasks")
        listed: dict[str, Tree] = {recipe["task"]: {}} if "task" in recipe else {}
        if isinstance(table, Mapping):
            listed |= {name: dict(over or {}) for name, over in table.items()}
        elif isinstance(table, list):
            listed |= {name: {} for name in table}
        if not listed:
            raise UserError("tasks: the recipe names no task", key=options.source)
        if not options.tasks:
            return listed
        by_name = {find_task(name).name: over for name, over in listed.items()}
        return {find_task(name).name: by_name.get(find_task(name).name, {}) for name in options.tasks}

    def _resolve(self, recipe: Mapping[str, Any], task: tuple[str, Tree] | str, options: Options) -> RunConfig:
        name = task if isinstance(task, str) else task[0]
        tree: Tree = {k: v for k, v in recipe.items() if k not in RECIPE_KEYS}
        for part in (self._budget(recipe, options), self._tasks(recipe, options)[name]):
            tree = merge(tree, part)
        tree = override(tree, options.settings)
        tree["task"] = find_task(name).name
        if options.seed is not None:
            tree["seed"] = options.seed
        tree["device"] = pick_device(tree.get("device", "auto") if options.device == "auto" else options.device)
        headline = tree.get("guidance") or {}
        tree["variants"] = {k: merge(headline, v or {}) for k, v in (tree.get("variants") or {}).items()}
        config = validate(RunConfig, tree, options.source)
        if config.method not in AGENTS:
            raise UserError(f"no method is called '{config.method}'; {nearest(config.method, AGENTS)}", key="method")
        check_components(config)
        if config.data.generator is not None:
            validate_component(GENERATORS, config.data.generator.spec, GENERATOR_PARTS, "data.generator")
        return config

    def _budget(self, recipe: Mapping[str, Any], options: Options) -> Tree:
        budgets: Mapping[str, Tree] = recipe.get("budgets") or {}
        name = options.budget or recipe.get("default_budget")
        if name is None:
            return {}
        if name not in budgets:
            known = nearest(name, budgets) if budgets else "this recipe has none"
            raise UserError(f"no budget is called '{name}'; {known}", key="--budget" if options.budget else "default_budget")
        return budgets[name]

    def _job(self, config: RunConfig, options: Options) -> OfflineJob:
        folder = options.out / config.task.replace("/", "-") / f"seed-{config.seed}"
        return OfflineJob(config, RunFolder(folder), options.resume)

    def evaluate(self, run: Path, settings: Mapping[str, Any], reporter: Reporter) -> list[Row]:
        """Fresh rollouts of a trained run: ``omegas`` for every arm in one batched pass, ``episodes``, ``seed``, ``device``."""
        folder = RunFolder(run)
        config = validate(RunConfig, read_yaml(folder.config), str(folder.config))
        device = torch.device(pick_device(settings.get("device") or "auto"))
        config = config.model_copy(update={"device": device.type})
        torch.set_num_threads(config.threads)
        agent, task = self._restore(config, folder, device, reporter)
        episodes = settings.get("episodes") or config.evaluation.episodes
        seed = config.seed if settings.get("seed") is None else settings["seed"]
        omegas = scales(config, settings.get("omegas"))
        with reporter.bar("evaluation", episodes * (1 + sum(map(len, omegas.values())))) as bar:
            result = Evaluator(agent, task).run(omegas, episodes=episodes, seed=seed, advance=bar.advance)
        by_arm = {name: split_by_omega(task, result.returns, name) for name in config.arms}
        summary = {
            "task": config.task,
            "seed": seed,
            "dataset_score": task.score(agent.data.dataset_return),
            "behaviour": statistics(task, result.returns["behaviour"]),
            "guided_by_omega": by_arm.pop("guided"),
            "variants": {name: {"guided_by_omega": scores} for name, scores in by_arm.items()},
        }
        folder.log({"phase": "eval", "episodes": episodes, **{k: float(r.mean()) for k, r in result.returns.items()}})
        return rows(summary)

    def _restore(self, config: RunConfig, folder: RunFolder, device: torch.device, reporter: Reporter) -> tuple[AEPO, Any]:
        data, task = load_data(config, device, reporter)
        agent = AGENTS[config.method](config, data, device)
        for phase in agent.phases():
            if not folder.checkpoint(phase.name).exists():
                raise UserError(f"{folder.path} has no checkpoint of its phase '{phase.name}'; finish it with egd run --resume")
            trained = Phase(phase.name, 0, phase.learner)
            run_phase(trained, folder, reporter, seed=config.seed, device=device, checkpoint_every=1, log_every=1)
        return agent, task

    def components(self) -> dict[str, dict[str, str]]:
        """Kind -> name -> the first line of its docstring."""
        kinds: dict[str, dict[str, Any]] = {
            "schedule": SCHEDULES.names(),
            "energy (closed form)": ENERGIES.names(),
            "energy (trained)": OBJECTIVES.names(),
            "guidance rule": RULES.names(),
            "sampler": dict(SAMPLERS),
            "method": dict(AGENTS),
        }
        lines = {kind: {name: summary_line(c) for name, c in found.items()} for kind, found in kinds.items()}
        return {**lines, "posterior variance": DESCRIPTIONS}


def summary_line(component: Any) -> str:
    """The first line of a docstring."""
    return " ".join((component.__doc__ or "").strip().split("\n\n")[0].split())


def pick_device(name: str) -> str:
    """``auto`` is a GPU where there is one. UserError for a device that is not there."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise UserError(f"'{name}' is not a device; use auto, cpu or cuda", key="--device")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device is available here; use --device cpu", key="--device")
    return name


offline_rl = OfflineRL()
