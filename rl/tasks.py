"""Tasks of AEPO's tables under D4RL's names, with their datasets, environments, step limits and reference scores.

Reference scores are D4RL's by task name, never those of a dataset's metadata, some of which are wrong. Today's environments
(MuJoCo -v5, Adroit -v1) differ from those the references were measured on, and ``Task.env_note`` says how: scores are
comparable, not equal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from egd.errors import UserError, nearest

Family = Literal["gym-mujoco", "adroit", "maze2d", "antmaze", "other"]


@dataclass(frozen=True)
class RewardTransform:
    """Reward transform (r + ``shift``) times ``scale``; ``range`` is 1000 / (largest - smallest return of an episode)."""

    scale: Literal["range"] | float = 1.0
    shift: float = 0.0

    def __str__(self) -> str:
        shifted = f"r {'-' if self.shift < 0 else '+'} {abs(self.shift):g}" if self.shift else "r"
        if self.scale == 1:
            return shifted
        if self.shift == 0:
            return "range" if self.scale == "range" else f"r x {self.scale:g}"
        return f"({shifted}) x {self.scale}"


REWARDS: Mapping[Family, RewardTransform] = {
    "gym-mujoco": RewardTransform("range"),
    "adroit": RewardTransform("range"),
    "maze2d": RewardTransform(),
    "antmaze": RewardTransform(shift=-1.0),
    "other": RewardTransform(),
}
"""Reward transform of a family in the recipes: that of IQL and QGPO, except for maze2d, whose rewards are unchanged, as in
CORL: its episodes are pieces of one walk, and their returns have no meaning."""


@dataclass(frozen=True)
class Task:
    """Benchmark task. ``reference`` is (min, max) return: score = 100 (R - min) / (max - min). Without it the score is the
    return.
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
    benchmark: str | None = None
    """D4RL's id with version, for one of the 33 tasks of AEPO's tables; None for any other task."""
    env_note: str = ""
    """Difference of the environment from the benchmark's; empty for a task of no benchmark."""
    on_hub: bool = True
    """Whether Minari's hub has the datasets."""

    @property
    def reward(self) -> RewardTransform:
        """Reward transform of the family's recipe."""
        return REWARDS[self.family]

    def score(self, episode_return: float) -> float:
        """Return D4RL's normalised score of an undiscounted return, or the return itself where no reference is known."""
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
_NEWER = "a newer MuJoCo"
_UPRIGHT = "no reward for being healthy in the step that falls"
_PALM = "the reward's term for the distance of the hand has the other sign since gymnasium-robotics 1.2.1"
_NOTES = {
    "halfcheetah": f"HalfCheetah-v5, not HalfCheetah-v2: {_NEWER}",
    "hopper": f"Hopper-v5, not Hopper-v2: {_NEWER}; {_UPRIGHT}",
    "walker2d": f"Walker2d-v5, not Walker2d-v2: {_NEWER}; {_UPRIGHT}; both feet have the same friction",
    "pen": f"AdroitHandPen-v1, not pen-v0: {_NEWER}",
    "hammer": f"AdroitHandHammer-v1, not hammer-v0: {_NEWER}; {_PALM}",
    "door": f"AdroitHandDoor-v1, not door-v0: {_NEWER}; {_PALM}",
    "relocate": f"AdroitHandRelocate-v1, not relocate-v0: {_NEWER}; {_PALM}",
    "maze2d": "PointMaze's ball in D4RL's maze: it starts at rest and never in the goal's cell, and the goal is that cell's "
    "centre, 0.28 m from D4RL's",
    "antmaze": "AntMaze -v4 of gymnasium-robotics: another ant (five times D4RL's torque, half its time step), and the goal is "
    "reached at 0.45 m, not 0.5",
}


def _adroit(env: str, datasets: tuple[str, ...], name: str, benchmark: str | None = None) -> Task:
    steps, reference = _ADROIT[env]
    env_id = f"AdroitHand{env.capitalize()}-v1"
    return Task(name, "adroit", datasets, env_id, {}, steps, reference, benchmark=benchmark, env_note=_NOTES[env])


def _mujoco(env: str, datasets: tuple[str, ...], name: str, benchmark: str | None = None, *, on_hub: bool = True) -> Task:
    env_id, reference = _MUJOCO[env]
    note = _NOTES[env]
    return Task(name, "gym-mujoco", datasets, env_id, {}, 1000, reference, benchmark=benchmark, env_note=note, on_hub=on_hub)


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
        benchmark=f"maze2d-{variant}-v1",
        env_note=_NOTES["maze2d"],
    )


def _antmaze(variant: str) -> Task:
    return Task(
        f"antmaze-{variant}",
        "antmaze",
        (f"D4RL/antmaze/{variant}-v1",),
        "egd/AntMaze-v0",
        {"map_name": variant.partition("-")[0]},
        _ANTMAZE[variant],
        (0.0, 1.0),
        ("achieved_goal", "observation"),
        goal_reward=True,
        benchmark=f"antmaze-{variant}-v2",
        env_note=_NOTES["antmaze"],
    )


def _mujoco_tasks(env: str) -> list[Task]:
    medium, expert, replay = (f"mujoco/{env}/{quality}-v0" for quality in ("medium", "expert", "medium-replay"))

    def task(quality: str, *datasets: str, on_hub: bool = True) -> Task:
        name = f"{env}-{quality}"
        benchmark = f"{name}-v2" if quality != "expert" else None  # AEPO's tables have no expert
        return _mujoco(env, datasets, name, benchmark, on_hub=on_hub)

    return [
        task("medium", medium),
        task("medium-replay", replay, on_hub=False),
        task("medium-expert", medium, expert),
        task("expert", expert),
    ]


def _table() -> dict[str, Task]:
    tasks = [task for env in _MUJOCO for task in _mujoco_tasks(env)]
    tasks += [_maze2d(v) for v in _MAZE2D] + [_antmaze(v) for v in _ANTMAZE]
    for env in _ADROIT:
        names = [(f"{env}-{quality}", f"D4RL/{env}/{quality}-v2") for quality in ("human", "cloned", "expert")]
        tasks += [_adroit(env, (dataset,), name, f"{name}-v1") for name, dataset in names]
    return {task.name: task for task in tasks}


TASKS = _table()
"""Tasks by short name: the 33 of AEPO's tables, and those without a ``benchmark``."""


def find_task(name: str) -> Task:
    """Return the task of D4RL's short name (with or without -v1/-v2) or of a Minari id. Raises UserError for a name of neither
    form.
    """
    short = re.sub(r"-v\d+$", "", name)
    if short in TASKS:
        return TASKS[short]
    if "/" in name:
        return _by_dataset(name)
    raise UserError(
        f"no task is called '{name}'; {nearest(name, TASKS)} (or give a Minari id: namespace/name-v0)", key="--task"
    )


_ADROIT_ID = re.compile(r"(?:D4RL|egd)/(pen|door|hammer|relocate)/.+-v\d+")
_MUJOCO_ID = re.compile(r"(?:mujoco|egd)/(hopper|walker2d|halfcheetah)/.+-v\d+")
_MAZE2D_ID = re.compile(r"(D4RL/pointmaze|egd/maze2d)/(umaze|medium|large)(-dense)?(?:-[\w-]+)?-v\d+")


def _by_dataset(dataset: str) -> Task:
    """Return the task of a Minari id.

    It is the task whose only dataset this is; else one of the known environment in the id; else one of the dataset's own
    environment.
    """
    if not re.fullmatch(r"([\w-]+/)+[\w-]+-v\d{1,9}", dataset):  # it becomes a path: no dots
        raise UserError(f"'{dataset[:100]}' is not a Minari id of the form namespace/name-v0", key="--task")
    for task in TASKS.values():
        if task.datasets == (dataset,):
            return task
    if match := _ADROIT_ID.fullmatch(dataset):
        return _adroit(match[1], (dataset,), dataset)
    if match := _MUJOCO_ID.fullmatch(dataset):
        return _mujoco(match[1], (dataset,), dataset)
    if match := _MAZE2D_ID.fullmatch(dataset):
        task = replace(_maze2d(match[2] + (match[3] or "")), name=dataset, datasets=(dataset,), benchmark=None)
        return task if match[1] == "D4RL/pointmaze" else replace(task, reference=None)
    return Task(dataset, "other", (dataset,))
