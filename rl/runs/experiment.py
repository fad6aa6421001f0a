"""Offline RL as an experiment of the command line: jobs from recipes, fresh evaluations from run folders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import click
import torch

from egd.config.base import Tree, execution_keys
from egd.errors import UserError
from egd.runs import resources
from egd.runs.experiment import Job, Listing, Options, Row
from egd.runs.folder import RunFolder
from egd.runs.grid import check_count, variations
from egd.runs.progress import Reporter
from egd.runs.recipe import blaming, given, listed_tasks, pick_device, resolve, summary_line
from egd.runs.safe_names import apart, folder_of_task
from egd.runs.store import default_store
from egd.training.precision import set_up
from rl.agents import AGENTS, agent_class
from rl.agents.base import Agent
from rl.critics.choice import CRITICS
from rl.data.generators import GENERATORS
from rl.evaluation import video
from rl.evaluation.evaluator import Evaluator, chosen, watched
from rl.evaluation.results import rows, statistics
from rl.online.choice import GENERATORS as TRANSITIONS
from rl.runs.job import OfflineJob
from rl.runs.listings import list_methods, list_tasks
from rl.runs.loading import check_generated, read_config, restore
from rl.runs.old_keys import refuse_old_keys, refuse_old_options
from rl.runs.recipe import SECTIONS, check_sections, for_method, listed_methods, task_settings, typed
from rl.runs.run import Planned
from rl.runs.sizes import ESTIMATES
from rl.tasks import Task, find_task


class OfflineRL:
    """Entry point ``offline_rl`` of the group ``egd.experiments``."""

    caption = "normalised scores; the return itself where a task has no reference score"
    evaluates = (
        click.Option(
            ["--policy", "policies"],
            multiple=True,
            help="Only this of the results table: NAME, or NAME@OMEGA. Repeatable.",
        ),
        click.Option(
            ["--video"], type=Path, help="Film the rollouts, the policies side by side: FILE.mp4 or FILE.gif. One episode."
        ),
    )
    sections = SECTIONS

    def plan(self, recipe: Mapping[str, Any], options: Options) -> list[Job]:
        """Return the jobs for every task and method, or those of ``--task`` and ``--method``; a job has all runs that can be
        trained together.
        """
        refuse_old_keys(recipe, options.source)
        refuse_old_options(options.settings, "--set")
        refuse_old_options([f"{key}={','.join(map(str, values))}" for key, values in options.grid.items()], "--grid")
        tasks = listed_tasks(recipe, options, lambda name: find_task(name).name)
        apart({task: folder_of_task(task, "tasks") for task in tasks}, "tasks")
        methods = listed_methods(recipe, tasks, options)
        check_count(options, len(tasks), len(methods))
        pairs = product(tasks.items(), methods.items())
        jobs = [job for task, method in pairs for job in self._jobs(recipe, task, method, options)]
        planned = [run for job in jobs for run in job.planned]
        check_sections({run.method or run.config.agent: set(type(run.config).model_fields) for run in planned}, options)
        resources.check(
            [[run.config.model_dump() for run in job.planned] for job in jobs], options.out, options.source, ESTIMATES
        )
        return list(jobs)

    def _jobs(
        self, recipe: Mapping[str, Any], task: tuple[str, Tree], method: tuple[str, Tree], options: Options
    ) -> list[OfflineJob]:
        """Return the jobs of one task and method, each given with the changes it makes in the recipe."""
        place = options.out / folder_of_task(task[0], "tasks") / method[0]
        jobs: dict[str, OfflineJob] = {}
        store = None if options.fresh else default_store()
        for one in variations(options):
            with blaming(options):
                tree = resolve(recipe, task[0], task_settings(task, method, options), one.options, SECTIONS)
                config = typed(for_method(tree, method[0], options), options.source, given(options))
                check_generated(config)
            folder = RunFolder(place / one.folder / f"seed-{config.seed}", options.out, execution_keys(config))
            batch_key = json.dumps(agent_class(config.agent).batch_key(config), sort_keys=True)
            job = jobs.setdefault(batch_key, OfflineJob([], options.resume, store))
            job.planned.append(Planned(config, folder, one.cell, method[0]))
        return list(jobs.values())

    def evaluate(self, run: Path, settings: Mapping[str, Any], reporter: Reporter) -> list[Row]:
        """Roll out the policies of a trained run anew, and return the rows of the results table.

        ``settings`` may have ``omegas`` for all policies (in one batch), ``episodes``, ``seed``, ``device``, ``policies``
        to select some, and ``video``, the file of a film.
        """
        if settings.get("policies") and settings.get("omegas") is not None:
            raise UserError("give --policy or --omega, not both: --policy guided@1.5", key="--policy")
        if settings.get("video"):
            video.check_target(settings["video"])
        folder = RunFolder(run)
        device = torch.device(pick_device(settings.get("device") or "auto"))
        config = read_config(folder).model_copy(update={"device": device.type})
        set_up(device, config.threads, config.precision)
        agent, task = restore(config, folder, device, reporter)
        seed = config.seed if settings.get("seed") is None else settings["seed"]
        if settings.get("video"):
            returns = _filmed(agent, task, settings, seed, reporter)
            reporter.say(f"Written: {settings['video']}")
        else:
            returns = _rolled_out(agent, task, settings, seed, reporter)
            episodes = len(next(iter(returns.values())))
            try:
                folder.log({"phase": "eval", "episodes": episodes, **{k: float(r.mean()) for k, r in returns.items()}})
            except OSError as error:  # another user's folder, or a full disk: the results are still shown
                reporter.warn(f"these scores are not noted in {folder.metrics}: {error.strerror}")
        return rows(
            {
                "task": config.task,
                "method": config.method,
                "seed": seed,
                "dataset_score": task.score(agent.data.dataset_return),
                "policies": {name: statistics(task, r) for name, r in returns.items()},
            }
        )

    def listings(self) -> dict[str, Listing]:
        """Return the tables of ``egd list tasks`` and ``egd list methods``."""
        return {"tasks": list_tasks, "methods": list_methods}

    def components(self) -> dict[str, dict[str, str]]:
        """Return, by kind and name, the first line of each component's docstring."""
        kinds: dict[str, dict[str, Any]] = {
            "agent": dict(AGENTS),
            "critic": CRITICS.names(),
            "dataset generator": GENERATORS.names(),
            "transition generator": TRANSITIONS.names(),
        }
        return {kind: {name: summary_line(c) for name, c in found.items()} for kind, found in kinds.items()}


def _rolled_out(agent: Agent, task: Task, settings: Mapping[str, Any], seed: int, reporter: Reporter) -> dict[str, Any]:
    """Roll out the policies, and return the returns by policy."""
    episodes = settings.get("episodes") or agent.config.evaluation.episodes
    policies = settings.get("policies")
    if settings.get("omegas") is not None and not any(scale is not None for scale in agent.policies().values()):
        raise UserError(
            f"the policies of '{agent.config.agent}' have no guidance scale: {', '.join(agent.policies())}", key="--omega"
        )
    scales = chosen(agent, policies) if policies else agent.scales(settings.get("omegas"))
    with watched(reporter, "evaluation", [agent], task) as watch:
        return Evaluator(agent, task).run(scales, episodes=episodes, seed=seed, watch=watch).returns


def _filmed(agent: Agent, task: Task, settings: Mapping[str, Any], seed: int, reporter: Reporter) -> dict[str, Any]:
    """Film the policies, one episode by default, and return the returns by policy."""
    episodes, policies = settings.get("episodes") or 1, settings.get("policies")
    scales = chosen(agent, policies) if policies else video.shown(agent, settings.get("omegas"))
    with reporter.bar("pictures", None) as bar:
        return video.film(agent, task, scales, settings["video"], episodes=episodes, seed=seed, advance=bar.advance)


offline_rl = OfflineRL()
