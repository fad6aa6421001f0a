"""Loading: a run's transitions from its configuration, and its trained agent from its folder."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import torch

from egd.config.base import execution_keys, read_yaml
from egd.config.trust import trusting
from egd.runs import resources
from egd.runs.folder import RunFolder
from egd.runs.progress import Reporter
from egd.runs.restoring import load_trained
from egd.training.learners import is_training_only
from rl.agents import agent_class
from rl.agents.base import Agent
from rl.config import RunConfig
from rl.data.episodes import LOADING, Episodes, data_return, load_episodes, relabel, row_bytes, size_of, to_offline_data
from rl.data.generators import check_made_by, make
from rl.data.record import Record, fingerprint, of_run
from rl.data.stored import is_local
from rl.data.transitions import OfflineData
from rl.runs.recipe import typed
from rl.runs.sizes import ESTIMATES
from rl.tasks import Task


def load_data(config: RunConfig, device: torch.device | str, reporter: Reporter | None = None) -> tuple[OfflineData, Task]:
    """Load the task's transitions on the device, and return them with the task; a missing dataset with a generator is made."""
    task = config.found_task()
    names = config.data.datasets or task.datasets
    _generate(config, names, reporter or Reporter())
    episodes = load_episodes(names, task.observation_keys, download=config.data.download)
    check_room([config], episodes)
    source = fingerprint(names, episodes)
    if task.goal_reward:
        episodes = relabel(task, episodes)
    return replace(_offline(config, task, episodes, device), source=source), task


def check_room(configs: Sequence[RunConfig], data: Episodes | OfflineData) -> None:
    """Raise UserError where the data, and what these runs make of them, need more memory than there is.

    A plan cannot check this, because it knows neither the number of a dataset's transitions nor their width.
    """
    rows, states, actions = size_of(data)
    trees = [config.model_dump() for config in configs]
    support = sum((tree.get("support") or {}).get("actions", 0) for tree in trees)
    replayed = sum((tree.get("online") or {}).get("steps", 0) for tree in trees)
    known = {"data.datasets": row_bytes(states, actions, LOADING) * rows, "data.generator.steps": 0}
    known |= {"support.actions": 4 * actions * support * rows, "online.steps": row_bytes(states, actions) * replayed}
    resources.check_memory(
        trees, ", ".join(configs[0].data.datasets or configs[0].found_task().datasets), known, estimates=ESTIMATES
    )


def _generate(config: RunConfig, names: Sequence[str], reporter: Reporter) -> None:
    generator = config.data.generator
    if generator is not None and not is_local(names[0]):
        make(names[0], generator.spec, reporter, "data.generator")


def check_generated(config: RunConfig) -> None:
    """Raise UserError where the recipe's dataset exists, but was made by other settings than the recipe's."""
    generator, names = config.data.generator, config.data.datasets or config.found_task().datasets
    if generator is not None and is_local(names[0]):
        check_made_by(names[0], generator.spec, "data.generator")


def _offline(config: RunConfig, task: Task, episodes: Episodes, device: torch.device | str) -> OfflineData:
    d, rewards = config.data, config.data.rewards(task)
    return to_offline_data(
        episodes,
        data_return(task, episodes),
        scale=rewards.scale,
        shift=rewards.shift,
        standardise=d.standardise_states,
        device=device,
    )


def read_config(folder: RunFolder) -> RunConfig:
    """Read the configuration of a run.

    Raises UserError where it is not of this version, names untrusted code (``egd.config.trust``), or needs more memory than
    there is.
    """
    with trusting(False, folder.path):
        config = typed(read_yaml(folder.config), str(folder.config))
    resources.check_memory([config.model_dump()], str(folder.config), estimates=ESTIMATES)
    return config


def restore(config: RunConfig, folder: RunFolder, device: torch.device, reporter: Reporter | None = None) -> tuple[Agent, Task]:
    """Return the agent of a run, with the weights of its checkpoints and its statistics, and its task.

    Where the dataset is not local, the statistics suffice for most agents to act. Raises UserError where a checkpoint is
    missing, or where the local dataset is not the one that the run was trained on.
    """
    reporter, task = reporter or Reporter(), config.found_task()
    record = Record.read(folder)
    if record is not None and not all(map(is_local, config.data.datasets or task.datasets)):
        with suppress(ValueError, RuntimeError, IndexError):  # raised by an agent that needs transitions even to act
            return restored(config, folder, record.alone(device), device), task
    data = of_run(folder, load_data(config, device, reporter)[0], reporter.warn)
    return restored(config, folder, data, device), task


def restored(config: RunConfig, folder: RunFolder, data: OfflineData, device: torch.device) -> Agent:
    """Return the agent of a run with the weights of its checkpoints, from data that ``of_run`` returned."""
    agent = agent_class(config.agent)(config, data, device)
    for phase in agent.phases():
        if is_training_only(phase.learner):
            continue
        load_trained(phase, replace(folder, execution=execution_keys(config)), device)
    return agent
