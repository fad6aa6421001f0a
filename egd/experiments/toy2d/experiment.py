"""The 2-D data sets as an experiment of the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from egd.config.base import sections_of
from egd.experiments.toy2d.config import Toy2dConfig
from egd.experiments.toy2d.data import DATA_SETS, find_data_set
from egd.experiments.toy2d.evaluation import rows, summarise
from egd.experiments.toy2d.job import PROCEDURE, evaluated, load_model
from egd.runs.experiment import Job, Options, Row
from egd.runs.job import finished, load, plan
from egd.runs.labels import label
from egd.runs.progress import Reporter
from egd.runs.recipe import listed_tasks, summary_line


class Toy2d:
    """The entry point ``toy2d`` of the group ``egd.experiments``."""

    sections = sections_of(Toy2dConfig)
    caption = "sliced W2 to exact samples, and the mean energy"

    def plan(self, recipe: Mapping[str, Any], options: Options) -> list[Job]:
        """Return a job for every data set of the recipe, or for those of ``--task``."""
        tasks = listed_tasks(recipe, options)
        for task in tasks:
            find_data_set(task, "--task" if options.tasks else "tasks")
        return list(plan(PROCEDURE, recipe, tasks, options))

    def evaluate(self, run: Path, settings: Mapping[str, Any], reporter: Reporter) -> list[Row]:
        """Draw ``episodes`` new samples from a trained run at other guidance scales ``omegas``, with another ``seed``, and
        return their rows.
        """
        config, folder = finished(PROCEDURE, run, settings.get("device"))
        model = load_model(config)
        load(model.phases(), folder, model.device)
        seed = config.seed if settings.get("seed") is None else settings["seed"]
        table: list[Row] = []
        for omega in settings.get("omegas") or [config.omega]:
            result = evaluated(model, reporter, seed, omega, settings.get("episodes"))
            table += [{**row, "omega": label(omega)} for row in rows(config.task, seed, summarise(result))]
        return table

    def measured(self, summary: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the rows of a summary for ``egd report``."""
        named = summary["results"].items()
        return [{"estimator": name, "beta": float(beta), **row} for name, by_beta in named for beta, row in by_beta.items()]

    def components(self) -> dict[str, dict[str, str]]:
        """Return kind -> name -> the first paragraph of the component's docstring."""
        return {"data set": {name: summary_line(s.draw) for name, s in DATA_SETS.items()}}


toy2d = Toy2d()
