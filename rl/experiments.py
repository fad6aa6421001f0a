"""Offline RL as an experiment of the command line: recipes to jobs, run folders to fresh evaluations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from egd.components import validate as validate_component
from egd.computing import set_up
from egd.config import Tree, merge, read_yaml, validate
from egd.errors import UserError, nearest
from egd.experiments import Job, Options, Row
from egd.many import variations
from egd.planning import listed_tasks, pick_device, resolve, summary_line
from egd.progress import Reporter
from egd.runs import RunFolder
from rl.agents import AGENTS
from rl.agents.aepo import check_components, is_trained
from rl.config import GuidanceConfig, RunConfig
from rl.evaluator import Evaluator, scales
from rl.job import OfflineJob
from rl.loading import GENERATOR_PARTS, GENERATORS, restore
from rl.results import rows, split_by_omega, statistics
from rl.run import Planned
from rl.tasks import find_task


class OfflineRL:
    """The entry point ``offline_rl`` of the group ``egd.experiments``."""

    caption = "normalised scores; the return itself where a task has no reference score"

    def plan(self, recipe: Mapping[str, Any], options: Options) -> list[Job]:
        """For every task of the recipe, or for those of ``--task``, a job of all runs that can be trained together."""
        tasks = listed_tasks(recipe, options, lambda name: find_task(name).name)
        return [job for task, over in tasks.items() for job in self._jobs(recipe, task, over, options)]

    def _jobs(self, recipe: Mapping[str, Any], task: str, over: Tree, options: Options) -> list[OfflineJob]:
        alike: dict[str, OfflineJob] = {}
        for one in variations(options):
            config = self._config(resolve(recipe, task, over, one.options), options)
            folder = RunFolder(options.out / task.replace("/", "-") / one.folder / f"seed-{config.seed}")
            job = alike.setdefault(_kind(config), OfflineJob([], options.resume))
            job.planned.append(Planned(config, folder, one.cell))
        return list(alike.values())

    def _config(self, tree: Tree, options: Options) -> RunConfig:
        headline = tree.get("guidance") or {}
        tree["variants"] = {k: merge(headline, v or {}) for k, v in (tree.get("variants") or {}).items()}
        config = validate(RunConfig, tree, options.source)
        if config.method not in AGENTS:
            raise UserError(f"no method is called '{config.method}'; {nearest(config.method, AGENTS)}", key="method")
        check_components(config)
        if config.data.generator is not None:
            validate_component(GENERATORS, config.data.generator.spec, GENERATOR_PARTS, "data.generator")
        return config

    def evaluate(self, run: Path, settings: Mapping[str, Any], reporter: Reporter) -> list[Row]:
        """Fresh rollouts of a trained run: ``omegas`` for every arm in one batched pass, ``episodes``, ``seed``, ``device``."""
        folder = RunFolder(run)
        config = validate(RunConfig, read_yaml(folder.config), str(folder.config))
        device = torch.device(pick_device(settings.get("device") or "auto"))
        config = config.model_copy(update={"device": device.type})
        set_up(device, config.threads, config.precision)
        agent, task = restore(config, folder, device, reporter)
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

    def components(self) -> dict[str, dict[str, str]]:
        """Kind -> name -> the first line of its docstring."""
        kinds: dict[str, dict[str, Any]] = {"method": dict(AGENTS), "dataset generator": GENERATORS.names()}
        return {kind: {name: summary_line(c) for name, c in found.items()} for kind, found in kinds.items()}


def _kind(config: RunConfig) -> str:
    """The settings in which runs that are trained together agree: all but the seed, the expectile, the value of beta, and
    what comes after training.
    """
    after: Any = {"seed": True, "critic": {"expectile"}, "evaluation": {"episodes", "envs"}, "guidance": True, "variants": True}
    tree = config.model_dump(mode="json", exclude=after)
    betas = list(dict.fromkeys(arm.beta for arm in config.arms.values()))
    tree["arms"] = {name: _trained(arm, betas) for name, arm in config.arms.items()}
    return json.dumps(tree, sort_keys=True)


def _trained(arm: GuidanceConfig, betas: list[float]) -> Any:
    """What of an arm decides training. Arms of one beta may share a network: which do is the same in runs of a kind."""
    if not is_trained(arm):
        return None
    kept = {"energy", "posterior", "clip_x0", "straight_through", "energy_scale"}
    return {**arm.model_dump(mode="json", include=kept), "beta": betas.index(arm.beta)}


offline_rl = OfflineRL()
