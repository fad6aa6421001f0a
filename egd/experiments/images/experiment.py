"""Guided images as an experiment of the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from egd.config.base import Tree, read_yaml, sections_of, validate
from egd.errors import UserError
from egd.experiments.images.config import ImagesConfig
from egd.experiments.images.evaluation import ImagesSummary, rows
from egd.experiments.images.job import ImagesJob, evaluated, load_model, same_images
from egd.experiments.images.model import DATA, IMAGE_ENERGIES, check_components
from egd.runs import resources
from egd.runs.experiment import Job, Options, Row
from egd.runs.folder import RunFolder
from egd.runs.grid import Variation, check_count, variations
from egd.runs.labels import label
from egd.runs.phases import load_trained
from egd.runs.progress import Reporter
from egd.runs.recipe import blaming, given, listed_tasks, pick_device, resolve, summary_line, without_nulls
from egd.runs.safe_names import apart, check_names, folder_of_task
from egd.training.precision import set_up


class Images:
    """The entry point ``images`` of the group ``egd.experiments``. A task is a name for a set of images and its settings."""

    sections = sections_of(ImagesConfig)
    caption = "what the energy is about, and the sliced W2 to reweighted data where there is enough of it"

    def plan(self, recipe: Mapping[str, Any], options: Options) -> list[Job]:
        """One job for every task of the recipe, or for those of ``--task``."""
        known = listed_tasks(recipe, Options(out=options.out, source=options.source))
        tasks = listed_tasks(recipe, options).items()
        if unknown := [name for name, _ in tasks if name not in known]:
            raise UserError(f"the recipe has no task '{unknown[0]}'; known: {', '.join(known)}", key="--task")
        check_count(options, len(tasks))
        apart({task: folder_of_task(task, "tasks") for task, _ in tasks}, "tasks")
        jobs = [self._job(recipe, task, over, one) for task, over in tasks for one in variations(options)]
        resources.check([[job.config.model_dump()] for job in jobs], options.out, options.source)
        return list(jobs)

    def _job(self, recipe: Mapping[str, Any], task: str, over: Tree, variation: Variation) -> ImagesJob:
        options = variation.options
        with blaming(options):
            tree = without_nulls(resolve(recipe, task, over, options, self.sections), "targets", "estimators")
            config = validate(ImagesConfig, tree, options.source, given(options))
            check_names(config)
            check_components(config)
        folder = RunFolder(options.out / folder_of_task(task, "tasks") / variation.folder / f"seed-{config.seed}", options.out)
        return ImagesJob(config, folder, options.resume, variation.cell)

    def evaluate(self, run: Path, settings: Mapping[str, Any], reporter: Reporter) -> list[Row]:
        """Fresh samples of a trained run at other guidance scales ``omegas``, ``episodes`` of them, with another ``seed``."""
        folder = RunFolder(run)
        config = validate(ImagesConfig, read_yaml(folder.config), str(folder.config))
        resources.check_memory([config.model_dump()], str(folder.config))
        if folder.read_summary(ImagesSummary) is None:
            raise UserError(f"{run} is not complete; finish it with egd run --resume")
        config = config.model_copy(update={"device": pick_device(settings.get("device") or "auto")})
        set_up(config.device, config.threads)
        model = load_model(config)
        same_images(folder, model)
        for phase in model.phases():
            load_trained(phase, folder, model.device)
        seed = config.seed if settings.get("seed") is None else settings["seed"]
        table: list[Row] = []
        for omega in settings.get("omegas") or [None]:
            result = evaluated(model, reporter, seed, omega, settings.get("episodes"))
            column = {} if omega is None else {"omega": label(omega)}
            table += [{**row, **column} for row in rows(config.task, result.results)]
        return table

    def components(self) -> dict[str, dict[str, str]]:
        """Kind -> name -> the first line of its docstring."""
        registries = {"set of images": DATA, "energy of images": IMAGE_ENERGIES}
        return {kind: {name: summary_line(c) for name, c in r.names().items()} for kind, r in registries.items()}


images = Images()
