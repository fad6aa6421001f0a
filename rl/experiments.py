"""Offline RL as an experiment of the command line: recipes to jobs, run folders to fresh evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from egd.components import validate as validate_component
from egd.config import Tree, merge, read_yaml, validate
from egd.errors import UserError, nearest
from egd.experiments import Job, Options, Row
from egd.phases import Phase, run_phase
from egd.planning import listed_tasks, pick_device, resolve, summary_line
from egd.progress import Reporter
from egd.runs import RunFolder
from rl.agents import AGENTS
from rl.agents.aepo import AEPO, check_components
from rl.config import RunConfig
from rl.evaluator import Evaluator, scales
from rl.job import OfflineJob
from rl.loading import GENERATOR_PARTS, GENERATORS, load_data
from rl.results import rows, split_by_omega, statistics
from rl.tasks import find_task


class OfflineRL:
    """The entry point ``offline_rl`` of the group ``egd.experiments``."""

    caption = "normalised scores; the return itself where a task has no reference score"

    def plan(self, recipe: Mapping[str, Any], options: Options) -> list[Job]:
        """One job for every task of the recipe, or for those of ``--task``."""
        tasks = listed_tasks(recipe, options, lambda name: find_task(name).name)
        return [self._job(self._config(resolve(recipe, task, over, options), options), options) for task, over in tasks.items()]

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
        kinds: dict[str, dict[str, Any]] = {"method": dict(AGENTS), "dataset generator": GENERATORS.names()}
        return {kind: {name: summary_line(c) for name, c in found.items()} for kind, found in kinds.items()}


offline_rl = OfflineRL()
