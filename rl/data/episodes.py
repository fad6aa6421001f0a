"""Loading of Minari episodes, and their conversion to flat tensors of transitions on the device."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import minari
import numpy as np
import torch
from torch import Tensor

import rl.envs.antmaze
import rl.envs.maze2d
from egd.errors import UserError, nearest
from egd.runs.resources import memory_limit
from rl.data.checks import Digits, refusing
from rl.data.stored import Stored, check_spaces, existing, is_local, lacking, list_local, read_episodes, store_root
from rl.data.transitions import Batch, OfflineData, RewardScale
from rl.envs.maze2d import reward_at
from rl.envs.spaces import flat_paths, flatten_rows
from rl.tasks import TASKS, Task, find_task

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Episodes:
    """Raw episodes in stored order: observations (T + 1, S), actions (T, A), rewards (T,), terminations (T,)."""

    observations: list[Array]
    actions: list[Array]
    rewards: list[Array]
    terminations: list[Array]

    @property
    def returns(self) -> Array:
        """Undiscounted return of every episode."""
        return np.array([r.sum() for r in self.rewards])

    @property
    def lengths(self) -> Array:
        """Number of steps of every episode."""
        return np.array([len(r) for r in self.rewards])


LOADING = 3
"""Memory needed while transitions are made from episodes, in multiples of the transitions' own size."""


def row_bytes(states: int, actions: int, copies: int = 1) -> int:
    """Return the bytes that a transition occupies in float32, times ``copies``."""
    return copies * 4 * (2 * states + actions + 2)


def size_of(data: Episodes | OfflineData) -> tuple[int, int, int]:
    """Return the number of transitions, of state entries and of action entries."""
    if isinstance(data, OfflineData):
        return len(data.transitions), len(data.state_mean), len(data.action_low)
    return int(data.lengths.sum()), data.observations[0].shape[1], data.actions[0].shape[1]


def load_episodes(datasets: Sequence[str], keys: tuple[str, ...] = (), *, download: bool = True) -> Episodes:
    """Return all episodes of the Minari datasets, concatenated in order.

    Raises UserError where a dataset is neither local nor downloadable, at the first problem in one, and as soon as the steps
    read need more memory than there is, whatever the metadata claim.
    """
    episodes = Episodes([], [], [], [])
    steps, memory = 0, memory_limit()
    for dataset_id in datasets:
        stored = open_dataset(dataset_id, download=download)
        check_spaces(stored, keys, refusing(dataset_id))
        paths, digits = flat_paths(stored.observation_space, keys), Digits()
        for episode in read_episodes(stored, keys=keys):
            episodes.observations.append(digits.add(flatten_rows(episode.observations, paths)))
            episodes.actions.append(np.asarray(episode.actions, dtype=np.float32))
            episodes.rewards.append(np.asarray(episode.rewards, dtype=np.float32))
            episodes.terminations.append(episode.terminations)
            steps += len(episode.rewards)
            if (needed := row_bytes(episodes.observations[-1].shape[1], episode.actions.shape[1], LOADING) * steps) > memory:
                raise UserError(
                    f"{dataset_id}: its first {steps:,} steps take about {needed / 1e9:.3g} GB of memory, and this machine has "
                    f"{memory / 1e9:.3g} GB; take a smaller dataset, or state the memory that there is with EGD_MEMORY_GB",
                    key="data.datasets",
                )
        digits.check("observations", refusing(dataset_id))
        first, last = ((e.observations[i].shape[1], e.actions[i].shape[1]) for e in [episodes] for i in (0, -1))
        if first != last:
            raise UserError(
                f"{dataset_id} has {last[0]} state and {last[1]} action entries, {datasets[0]} has {first[0]} and {first[1]}: "
                "datasets that are concatenated must be of one environment",
                key="data.datasets",
            )
    return episodes


def open_dataset(dataset_id: str, *, download: bool = True) -> Stored:
    """Return a Minari dataset of the local store, downloaded from the hub if it is missing.

    Raises UserError, which names remedies, for a dataset that cannot be had, for an incomplete folder and for invalid metadata.
    """
    if lack := lacking(dataset_id):
        raise UserError(f"{lack}\nRemedies: {'; '.join(_remedies(dataset_id))}", key="data.datasets")
    if not is_local(dataset_id):
        if not download:
            raise UserError(_missing(dataset_id, "data.download is off"), key="data.datasets")
        if reason := _download(dataset_id):
            raise UserError(_missing(dataset_id, f"could not be downloaded: {reason}"), key="data.datasets")
    return existing(dataset_id)


@cache  # an unreachable hub is asked once, not again for every method of a sweep
def _download(dataset_id: str) -> str:
    """Download the dataset from the hub; return the reason of a failure, or an empty string."""
    with suppress(ImportError):
        importlib.import_module("huggingface_hub.utils.logging")  # sets its logger's level
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries would bury the one message that matters
    try:
        minari.download_dataset(dataset_id)
    except Exception as error:  # the hub client raises whatever its transport does
        return " ".join(str(error).split())[:160] or type(error).__name__
    return ""


def _missing(dataset_id: str, reason: str) -> str:
    local = list(list_local())
    return (
        f"dataset {dataset_id} is not in {store_root()} ({reason}); "
        f"{nearest(dataset_id, local) if local else 'no dataset is there'}\nRemedies: {'; '.join(_remedies(dataset_id))}"
    )


def _remedies(dataset_id: str) -> list[str]:
    """Return the ways to obtain the dataset, as sentences for an error message."""
    own = find_task(dataset_id) if "/" in dataset_id else Task(dataset_id, "other", (dataset_id,))
    task = next((listed for listed in TASKS.values() if dataset_id in listed.datasets), own)
    remedies = ["set MINARI_DATASETS_PATH to the folder that has it"]
    if task.on_hub:
        remedies.append(f"minari download {dataset_id} where there is a network")
    if task.family == "maze2d":
        dense = " --dense" if task.env_kwargs["dense"] else ""
        remedies.append(f"egd data generate {dataset_id} --maze {task.env_kwargs['map_name']}{dense}")
    if task.family != "antmaze":  # D4RL's antmaze files come from another ant
        remedies.append(f"egd data import FILE.hdf5 --id {dataset_id} for an original D4RL file")
    return remedies


def relabel(task: Task, episodes: Episodes) -> Episodes:
    """Return the episodes with rewards for the one goal of the evaluation: 1 where the next position (the first two entries) is
    within the environment's goal radius, or exp(-distance) for dense rewards.

    In antmaze reaching the goal is terminal, as in D4RL; in maze2d the episode continues.
    """
    if (entries := episodes.observations[0].shape[1]) < 2:
        raise UserError(
            f"the observations of {task.name} have {entries} entries, but those of a maze begin with the position, two "
            "numbers; is the dataset one of this maze?",
            key="data.datasets",
        )
    ends = task.family == "antmaze"
    maze = rl.envs.antmaze if ends else rl.envs.maze2d
    goal = np.asarray(maze.goal_xy(task.env_kwargs["map_name"]))
    dense = bool(task.env_kwargs.get("dense"))
    positions = [observations[1:, :2] for observations in episodes.observations]
    rewards = [reward_at(p, goal, dense=dense, radius=maze.GOAL_RADIUS).astype(np.float32) for p in positions]
    terminations = [
        reward > 0 if ends else np.zeros_like(old) for reward, old in zip(rewards, episodes.terminations, strict=True)
    ]
    return Episodes(episodes.observations, episodes.actions, rewards, terminations)


def reward_factor(scale: RewardScale, returns: Array) -> float:
    """Return 1000 / (largest - smallest episode return) for ``range``, as IQL and QGPO do; else the number itself."""
    if scale != "range":
        return float(scale)
    span = float(returns.max() - returns.min())
    return 1000.0 / span if span > 0 else 1.0


def to_offline_data(
    episodes: Episodes,
    score_return: float,
    *,
    scale: RewardScale = 1.0,
    shift: float = 0.0,
    standardise: bool = True,
    device: torch.device | str = "cpu",
) -> OfflineData:
    """Return the episodes as flat tensors of transitions.

    Rewards become (r + shift) * factor. States are standardised by mean and std + 1e-3 (CORL's convention), both computed in
    float64: in float32 a large offset would spoil them. Raises UserError for actions beyond [-1, 1], for values that are not
    finite, and for observations whose spread float32 cannot hold.
    """
    factor = reward_factor(scale, episodes.returns)
    digits = Digits()
    for observations in episodes.observations:
        digits.add(observations)

    def flat(name: str, parts: list[Array]) -> Tensor:
        rows = np.concatenate(parts).astype(np.float32)
        if not np.isfinite(rows).all():
            row = int(np.argwhere(~np.isfinite(rows))[0, 0])
            raise UserError(f"the {name} of transition {row} are not finite in float32: {rows[row]}", key="data.datasets")
        return torch.from_numpy(rows).to(device)

    state = flat("observations", [o[:-1] for o in episodes.observations])
    next_state = flat("next observations", [o[1:] for o in episodes.observations])
    digits.check("observations", _refuse)
    exact = np.concatenate([o[:-1] for o in episodes.observations]).astype(np.float64)
    mean = torch.from_numpy(exact.mean(0).astype(np.float32)).to(device)
    std = torch.from_numpy(exact.std(0, ddof=min(1, len(exact) - 1)).astype(np.float32)).to(device) + 1e-3
    if not standardise:
        mean, std = torch.zeros_like(mean), torch.ones_like(std)
    action = flat("actions", episodes.actions)
    if (reach := float(action.abs().max())) > 1.05:
        raise UserError(
            f"actions reach {reach:.3g}, but must lie in [-1, 1]; record through gymnasium's RescaleAction", key="data.datasets"
        )
    action = action.clamp(-1, 1)  # recordings overshoot by rounding
    transitions = Batch(
        (state - mean) / std,
        action,
        (flat("rewards", episodes.rewards) + shift) * factor,
        (next_state - mean) / std,
        flat("terminals", episodes.terminations),
    )
    low, high = action.amin(0), action.amax(0)
    return OfflineData(transitions, mean, std, low, high, score_return, len(episodes.actions), factor, shift)


def _refuse(problem: str) -> None:
    raise UserError(problem, key="data.datasets")


def data_return(task: Task, episodes: Episodes) -> float:
    """Return the mean return of the data's episodes up to the first terminal state or the task's step limit.

    The cut makes it comparable with an evaluation's mean return, because human demonstrations may exceed the step limit. In
    maze2d, whose episodes are pieces of one walk that never ends, it is the mean reward times the step limit.
    """
    if task.goal_reward and task.family != "antmaze" and task.max_steps is not None:
        return float(np.concatenate(episodes.rewards).mean() * task.max_steps)
    lives = zip(episodes.rewards, episodes.terminations, strict=True)
    ends = [(rewards, 1 + int(ended.argmax()) if ended.any() else len(ended)) for rewards, ended in lives]
    return float(np.mean([rewards[:end][: task.max_steps].sum() for rewards, end in ends]))
