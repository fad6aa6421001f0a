"""Check of a dataset or of a D4RL file that lists all problems at once: ``egd data check``."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np

from egd.errors import UserError
from rl.data.checks import check_reach
from rl.data.d4rl_import import check_hdf5
from rl.data.episodes import open_dataset
from rl.data.stored import check_all, is_local, lacking
from rl.envs.making import check_scale, make_env
from rl.envs.specs import NoEnvironment
from rl.tasks import Task, find_task


def problems_of(name: str) -> dict[str, list[str]]:
    """Return the problems of each dataset of a task's short name or Minari id, or those of the D4RL file at a path.

    Raises UserError for a dataset that is not there.
    """
    if name.endswith((".hdf5", ".h5")):
        problems: list[str] = []
        found = check_hdf5(Path(name), problems.append)
        check_reach(found.get("actions", np.empty(0)), "'actions'", problems.append)
        return {name: problems}
    task = _task(name)
    return {dataset: _problems(dataset, task) for dataset in task.datasets}


def _task(name: str) -> Task:
    try:
        return find_task(name)
    except UserError:  # an id without a namespace names no task, but may name a dataset
        if not is_local(name):
            raise
    return Task(name, "other", (name,))


def _problems(dataset: str, task: Task) -> list[str]:
    problems: list[str] = []
    if not is_local(dataset) or lacking(dataset):
        open_dataset(dataset, download=False)  # raises a UserError that names the remedies
    stored = check_all(dataset, task.observation_keys, problems.append)
    if stored is not None and task.env_id is None:
        try:
            with suppress(NoEnvironment):  # runs on such a task are trained but not evaluated
                env = make_env(task)
                env.close()
                check_scale(env.action_space, stored.action_space, dataset)
        except UserError as error:
            problems.append(str(error))
    return problems
