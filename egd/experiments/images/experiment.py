"""Guided images as an experiment of the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from egd.config.base import sections_of
from egd.errors import UserError
from egd.experiments.images.config import ImagesConfig
from egd.experiments.images.evaluation import rows
from egd.experiments.images.job import PROCEDURE, evaluated, load_model, same_images
from egd.experiments.images.model import DATA, IMAGE_ENERGIES
from egd.runs.experiment import Job, Options, Row
from egd.runs.job import finished, load, plan
from egd.runs.labels import label
from egd.runs.progress import Reporter
from egd.runs.recipe import listed_tasks, summary_line


class Images:
    """The entry point ``images`` of the group ``egd.experiments``. A task is a name for a set of images and its settings."""

    sections = sections_of(ImagesConfig)
    caption = "what the energy is about, and the sliced W2 to reweighted data where there is enough of it"

    def plan(self, recipe: Mapping[str, Any], options: Options) -> list[Job]:
        """Return a job for every task of the recipe, or for those of ``--task``."""
        known = listed_tasks(recipe, Options(out=options.out, source=options.source))
        tasks = listed_tasks(recipe, options)
        if unknown := [name for name in tasks if name not in known]:
            raise UserError(f"the recipe has no task '{unknown[0]}'; known: {', '.join(known)}", key="--task")
        return list(plan(PROCEDURE, recipe, tasks, options))

    def evaluate(self, run: Path, settings: Mapping[str, Any], reporter: Reporter) -> list[Row]:
        """Draw ``episodes`` new samples from a trained run at other guidance scales ``omegas``, with another ``seed``, and
        return their rows.
        """
        config, folder = finished(PROCEDURE, run, settings.get("device"))
        model = load_model(config)
        same_images(folder, model)
        load(model.phases(), folder, model.device)
        seed = config.seed if settings.get("seed") is None else settings["seed"]
        table: list[Row] = []
        for omega in settings.get("omegas") or [None]:
            result = evaluated(model, reporter, seed, omega, settings.get("episodes"))
            column = {} if omega is None else {"omega": label(omega)}
            table += [{**row, **column} for row in rows(config.task, result.results)]
        return table

    def components(self) -> dict[str, dict[str, str]]:
        """Return kind -> name -> the first paragraph of the component's docstring."""
        registries = {"set of images": DATA, "energy of images": IMAGE_ENERGIES}
        return {kind: {name: summary_line(c) for name, c in r.names().items()} for kind, r in registries.items()}


images = Images()
