"""The tasks of AEPO's tables under D4RL's names: where their data, environments, step limits and reference scores are.

Reference scores are D4RL's by task name, never a dataset's own metadata (some of those are wrong). Today's environments
(MuJoCo -v5,
Adroit -v1) differ from the ones the references were measured on: scores are comparable, not equal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from egd.errors import UserError, nearest

Family = Literal["gym-mujoco", "adroit", "maze2d", "antmaze", "other"]


@dataclass(frozen=True)
class Task:
    """One benchmark task. ``reference`` is (min, max) return: score = 100 (R - min) / (max - min). Without it the score
    is the return.
    """

    name: str
    family: Family
    datasets: tuple[str, ...]
    env_id: str | None = None
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    max_steps: int | None = None
    reference: tuple[float, float] | None = None
    observation_keys: tuple[str, ...] = ()
    goal_reward: bool = False

    def score(self, episode_return: float) -> float:
        """D4RL's normalised score of an undiscounted return; the return itself where no reference is known."""
        low, high = self.reference or (0.0, 100.0)
        return 100 * (episode_return - low) / (high - low)


_ADROIT = {
    "pen": (100, (96.262799, 3076.8331017826877)),
    "hammer": (200, (-274.856578, 12794.134825156867)),
    "door": (200, (-56.512833, 2880.5693087298737)),
    "relocate": (200, (-6.425911, 4233.877797728884)),
}
_MUJOCO = {
    "halfcheetah": ("HalfCheetah-v5", (-280.178953, 12135.0)),
    "hopper": ("Hopper-v5", (-20.272305, 3234.3)),
    "walker2d": ("Walker2d-v5", (1.629008, 4592.3)),
}
_MAZE2D = {
    "umaze": (300, (23.85, 161.86)),
    "umaze-dense": (300, (68.537689, 193.66285642381482)),
    "medium": (600, (13.13, 277.39)),
    "medium-dense": (600, (44.264742, 297.4552547777125)),
    "large": (800, (6.7, 273.99)),
    "large-dense": (800, (30.569041, 303.4857382709002)),
}
_ANTMAZE = {
    "umaze": 700,
    "umaze-diverse": 700,
    "medium-play": 1000,
    "medium-diverse": 1000,
    "large-play": 1000,
    "large-diverse": 1000,
}


def _adroit(env: str, quality: str, datasets: tuple[str, ...], name: str) -> Task:
    steps, reference = _ADROIT[env]
    return Task(name, "adroit", datasets, f"AdroitHand{env.capitalize()}-v1", {}, steps, reference)


def _mujoco(env: str, quality: str, datasets: tuple[str, ...], name: str) -> Task:
    env_id, reference = _MUJOCO[env]
    return Task(name, "gym-mujoco", datasets, env_id, {}, 1000, reference)


def _maze2d(variant: str) -> Task:
    steps, reference = _MAZE2D[variant]
    size, _, dense = variant.partition("-")
    return Task(
        f"maze2d-{variant}",
        "maze2d",
        (f"D4RL/pointmaze/{variant}-v2",),
        "egd/Maze2D-v0",
        {"map_name": size, "dense": bool(dense)},
        steps,
        reference,
        ("observation",),
        goal_reward=True,
    )


def _antmaze(variant: str) -> Task:
    kwargs = {"map_name": variant.partition("-")[0]}
    datasets = (f"D4RL/antmaze/{variant}-v1",)
    keys = ("achieved_goal", "observation")
    return Task(
        f"antmaze-{variant}",
        "antmaze",
        datasets,
        "egd/AntMaze-v0",
        kwargs,
        _ANTMAZE[variant],
        (0.0, 1.0),
        keys,
        goal_reward=True,
    )


def _table() -> dict[str, Task]:
    tasks = [_adroit(e, q, (f"D4RL/{e}/{q}-v2",), f"{e}-{q}") for e in _ADROIT for q in ("human", "cloned", "expert")]
    for env in _MUJOCO:
        root = f"mujoco/{env}"
        tasks.append(_mujoco(env, "medium", (f"{root}/medium-v0",), f"{env}-medium"))
        tasks.append(_mujoco(env, "medium-replay", (f"{root}/medium-replay-v0",), f"{env}-medium-replay"))
        tasks.append(_mujoco(env, "medium-expert", (f"{root}/medium-v0", f"{root}/expert-v0"), f"{env}-medium-expert"))
        tasks.append(_mujoco(env, "expert", (f"{root}/expert-v0",), f"{env}-expert"))
    tasks += [_maze2d(v) for v in _MAZE2D] + [_antmaze(v) for v in _ANTMAZE]
    return {task.name: task for task in tasks}


TASKS = _table()


def find_task(name: str) -> Task:
    """The task of D4RL's short name (with or without -v1/-v2) or of a Minari id. UserError for a name of neither form."""
    short = re.sub(r"-v\d+$", "", name)
    if short in TASKS:
        return TASKS[short]
    if "/" in name:
        return _by_dataset(name)
    raise UserError(
        f"no task is called '{name}'; {nearest(name, TASKS)} (or give a Minari id: namespace/name-v0)", key="--task"
    )


def _by_dataset(dataset: str) -> Task:
    if not re.fullmatch(r"([\w.-]+/)*[\w.-]+-v\d+", dataset):
        raise UserError(f"'{dataset}' is not a Minari id of the form namespace/name-v0", key="--task")
    for task in TASKS.values():
        if task.datasets == (dataset,):
            return task
    if match := re.fullmatch(r"D4RL/(pen|door|hammer|relocate)/(.+)-v\d+", dataset):
        return _adroit(match[1], match[2], (dataset,), dataset)
    if match := re.fullmatch(r"mujoco/(hopper|walker2d|halfcheetah)/(.+)-v\d+", dataset):
        return _mujoco(match[1], match[2], (dataset,), dataset)
    if match := re.fullmatch(r"egd/maze2d/(umaze|medium|large)(-dense)?-v\d+", dataset):
        return replace(_maze2d(match[1] + (match[2] or "")), name=dataset, datasets=(dataset,), reference=None)
    return Task(dataset, "other", (dataset,))
