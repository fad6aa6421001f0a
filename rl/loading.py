"""From a run's configuration to its transitions, and from its folder to what it trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from egd.components import Registry, build
from egd.errors import UserError
from egd.phases import Phase, run_phase
from egd.progress import Reporter
from egd.runs import RunFolder
from rl.agents import AGENTS
from rl.agents.aepo import AEPO
from rl.config import RunConfig
from rl.data import Episodes, OfflineData, is_local, load_episodes, relabel, to_offline_data, window_return
from rl.tasks import Task, find_task

GENERATORS = Registry("generator", "rl.generators")
GENERATOR_PARTS = {"dataset_id", "progress"}


def load_data(config: RunConfig, device: torch.device | str, reporter: Reporter | None = None) -> tuple[OfflineData, Task]:
    """The task's transitions on the device; a dataset with a generator is made where it is missing."""
    task = find_task(config.task)
    names = config.data.datasets or task.datasets
    _generate(config, names, reporter or Reporter())
    episodes = load_episodes(names, task.observation_keys, download=config.data.download)
    if task.goal_reward:
        episodes = relabel(task, episodes)
    return _offline(config, task, episodes, device), task


def _generate(config: RunConfig, names: Sequence[str], reporter: Reporter) -> None:
    generator = config.data.generator
    if generator is None or is_local(names[0]):
        return
    steps = int(generator.spec.settings.get("steps", 100_000))
    with reporter.bar(f"make {names[0]}", steps) as bar:
        parts = {"dataset_id": names[0], "progress": lambda done: bar.advance(done - bar.done)}
        build(GENERATORS, generator.spec, parts, "data.generator")


def _offline(config: RunConfig, task: Task, episodes: Episodes, device: torch.device | str) -> OfflineData:
    d = config.data
    return to_offline_data(
        episodes,
        window_return(episodes, task.max_steps, task.goal_reward),
        scale=d.reward_scale,
        shift=d.reward_shift,
        standardise=d.standardise_states,
        device=device,
    )


def restore(config: RunConfig, folder: RunFolder, device: torch.device, reporter: Reporter | None = None) -> tuple[AEPO, Task]:
    """The agent of a run with the weights of its checkpoints, and its task. UserError where a checkpoint is missing."""
    reporter = reporter or Reporter()
    data, task = load_data(config, device, reporter)
    agent = AGENTS[config.method](config, data, device)
    for phase in agent.phases():
        if not folder.checkpoint(phase.name).exists():
            raise UserError(f"{folder.path} has no checkpoint of its phase '{phase.name}'; finish it with egd run --resume")
        trained = Phase(phase.name, 0, phase.learner)
        run_phase(trained, folder, reporter, seed=config.seed, device=device, checkpoint_every=1, log_every=1)
    return agent, task
