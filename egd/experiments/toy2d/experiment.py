"""The 2-D data sets as an experiment of the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from egd.config.base import Tree, read_yaml, sections_of, validate
from egd.errors import UserError
from egd.experiments.toy2d.config import Toy2dConfig
from egd.experiments.toy2d.data import DATA_SETS, find_data_set
from egd.experiments.toy2d.evaluation import Toy2dSummary, rows, summarise
from egd.experiments.toy2d.job import Toy2dJob, evaluated, load
from egd.experiments.toy2d.model import Toy2dModel, check_components
from egd.runs import resources
from egd.runs.experiment import Job, Options, Row
from egd.runs.folder import RunFolder
from egd.runs.grid import Variation, check_count, variations
from egd.runs.labels import label
from egd.runs.progress import Reporter
from egd.runs.recipe import blaming, given, listed_tasks, pick_device, resolve, summary_line, without_nulls
from egd.runs.safe_names import check_names, folder_of_task
from egd.training.precision import set_up


class Toy2d:
    """The entry point ``toy2d`` of the group ``egd.experiments``."""

    sections = sections_of(Toy2dConfig)
    caption = "sliced W2 to exact samples, and the mean energy"

    def plan(self, recipe: Mapping[str, Any], options: Options) -> list[Job]:
        """One job for every data set of the recipe, or for those of ``--task``."""
        tasks = listed_tasks(recipe, options).items()
        check_count(options, len(tasks))
        jobs = [self._job(recipe, task, over, one) for task, over in tasks for one in variations(options)]
        resources.check([[job.config.model_dump()] for job in jobs], options.out, options.source)
        return list(jobs)

    def _job(self, recipe: Mapping[str, Any], task: str, over: Tree, variation: Variation) -> Toy2dJob:
        options = variation.options
        find_data_set(task, "--task" if options.tasks else "tasks")
        with blaming(options):
            tree = without_nulls(resolve(recipe, task, over, options, self.sections), "estimators")
            config = validate(Toy2dConfig, tree, options.source, given(options))
            check_names(config)
            check_components(config)
        folder = RunFolder(options.out / folder_of_task(task, "tasks") / variation.folder / f"seed-{config.seed}", options.out)
        return Toy2dJob(config, folder, options.resume, variation.cell)

    def evaluate(self, run: Path, settings: Mapping[str, Any], reporter: Reporter) -> list[Row]:
        """Fresh samples of a trained run at other guidance scales ``omegas``, ``episodes`` of them, with another ``seed``."""
        folder = RunFolder(run)
        config = validate(Toy2dConfig, read_yaml(folder.config), str(folder.config))
        resources.check_memory([config.model_dump()], str(folder.config))
        if folder.read_summary(Toy2dSummary) is None:
            raise UserError(f"{run} is not complete; finish it with egd run --resume")
        device = pick_device(settings.get("device") or "auto")
        config = config.model_copy(update={"device": device})
        set_up(device, config.threads)
        model = Toy2dModel(config, find_data_set(config.task), torch.device(device))
        load(model, folder)
        seed = config.seed if settings.get("seed") is None else settings["seed"]
        table: list[Row] = []
        for omega in settings.get("omegas") or [config.omega]:
            result = evaluated(model, reporter, seed, omega, settings.get("episodes"))
            table += [{**row, "omega": label(omega)} for row in rows(config.task, seed, summarise(result))]
        return table

    def measured(self, summary: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The rows of a summary for ``egd report``."""
        named = summary["results"].items()
        return [{"estimator": name, "beta": float(beta), **row} for name, by_beta in named for beta, row in by_beta.items()]

    def components(self) -> dict[str, dict[str, str]]:
        """Kind -> name -> the first line of its docstring."""
        return {"data set": {name: summary_line(s.draw) for name, s in DATA_SETS.items()}}


toy2d = Toy2d()
