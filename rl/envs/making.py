"""Making of tasks' evaluation environments, whose observations are flattened to one vector."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box, Dict
from gymnasium.wrappers import TimeLimit

import rl.envs.antmaze
import rl.envs.maze2d
from egd.errors import UserError
from rl.data.stored import existing
from rl.envs.robotics import gymnasium_robotics
from rl.envs.spaces import Array, Path, check_actions, entry, flat_paths, flat_size, flatten_observation
from rl.envs.specs import make_stored, stored_spec
from rl.tasks import Task

Env = gym.Env[Any, Any]


def register() -> None:
    """Register the robotics environments and this package's own with gymnasium."""
    gym.register_envs(gymnasium_robotics)
    rl.envs.maze2d.register()
    rl.envs.antmaze.register()


class Flat(gym.Wrapper[Any, Any, Any, Any]):
    """Wrapper whose observations are one float32 vector (S,); it raises UserError for a NaN in actions, rewards or
    observations.
    """

    def __init__(self, env: Env, paths: tuple[Path, ...], foreign: str = "") -> None:
        super().__init__(env)
        self.foreign = foreign
        """Dataset whose metadata specified the environment, or an empty string."""
        inner = env.unwrapped
        self.name = f"the environment {inner.spec.id if inner.spec else type(inner).__name__}"
        self.paths, self.steps = paths, 0
        self.observation_space = Box(-np.inf, np.inf, (flat_size(env.observation_space, paths),), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Start an episode, and return its first observation and info."""
        self.steps = 0
        with self._failing():
            observation, info = self.env.reset(seed=seed, options=options)
        return self._flat(observation), info

    def step(self, action: Array) -> tuple[Array, Any, bool, bool, dict[str, Any]]:
        """Take a step, and return observation, reward, terminated, truncated and info."""
        self.steps += 1
        self._check(action, "was given the action")
        with self._failing():
            observation, reward, terminated, truncated, info = self.env.step(action)
        self._check(reward, "gave the reward")
        return self._flat(observation), reward, terminated, truncated, info

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Raise UserError for any exception of an environment that was specified by a dataset's metadata, which may
        be wrong.
        """
        try:
            yield
        except Exception as error:
            if not self.foreign or isinstance(error, UserError):
                raise
            said = " ".join(str(error).split())[:200]
            where = f"in step {self.steps} of an episode ({type(error).__name__}: {said})"
            raise UserError(f"{self.name}, which comes with {self.foreign}, fails {where}", key="data.datasets") from error

    def _flat(self, observation: Any) -> Array:
        flat = flatten_observation(observation, self.paths)
        self._check(flat, "gave the observation")
        return flat

    def _check(self, value: Any, what: str) -> None:
        if not np.isfinite(value).all():
            said = " ".join(str(np.asarray(value)).split())[:100]
            raise UserError(f"{self.name} {what} {said} in step {self.steps} of an episode, which cannot go on")


def make_env(task: Task, keys: tuple[str, ...] = (), *, spec: EnvSpec | None = None, **kwargs: Any) -> Env:
    """Return the task's evaluation environment with flat float32 observations and a time limit.

    Raises UserError when it cannot be made.

    ``spec`` is that of a task whose environment comes with its data, if it has already been read and trusted.
    """
    register()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env = _make(task, spec, **kwargs)
    try:
        return Flat(_limited(env, task), _paths(env, task, keys), "" if task.env_id else task.datasets[0])
    except UserError:
        env.close()
        raise


def _make(task: Task, spec: EnvSpec | None, **kwargs: Any) -> Env:
    if task.env_id is None:
        return make_stored(spec or _spec(task), task.datasets[0], **kwargs)
    try:
        return gym.make(task.env_id, max_episode_steps=task.max_steps, disable_env_checker=True, **task.env_kwargs, **kwargs)
    except (gym.error.Error, ImportError, FileNotFoundError, TypeError) as error:
        raise UserError(f"cannot make the environment of {task.name} ({task.env_id}): {error}") from error


def _spec(task: Task) -> EnvSpec:
    register()  # registered environments are trusted
    return stored_spec(existing(task.datasets[0]))


def _paths(env: Env, task: Task, keys: tuple[str, ...]) -> tuple[Path, ...]:
    check_actions(env.action_space, f"the action space of the environment of {task.name}")
    name = f"the observation space of the environment of {task.name}"
    return flat_paths(env.observation_space, keys or task.observation_keys, name)


def _limited(env: Env, task: Task) -> Env:
    """Return the environment with a time limit, without which an evaluation might never end."""
    found: Any = env
    while isinstance(found, gym.Wrapper):
        if isinstance(found, TimeLimit) and (task.max_steps is None or found._max_episode_steps <= task.max_steps):
            return env
        found = found.env
    if task.max_steps is None:
        raise UserError(
            f"the environment of {task.name} has no time limit, so that an evaluation might never end; say after how many "
            "steps an episode ends",
            key="evaluation.max_steps",
        )
    return cast(Env, TimeLimit(env, task.max_steps))


def check_env(task: Task, state: int, action: int, dataset: str | None = None) -> None:
    """Make the environment once, before hours of training, to check that it fits the data.

    ``state`` and ``action`` are the numbers of entries in the data, ``dataset`` is the dataset whose entries and action scale
    must match. Raises UserError when the environment cannot be made or does not fit.
    """
    env = make_env(task)
    try:
        sizes = int(np.prod(env.observation_space.shape or ())), int(np.prod(env.action_space.shape or ()))
        inner, actions = cast(Flat, env).env.observation_space, env.action_space
    finally:
        env.close()
    if sizes != (state, action):
        raise UserError(
            f"the environment of {task.name} has {sizes[0]} observation and {sizes[1]} action entries, its data {state} and "
            f"{action}; check data.datasets",
            key="task",
        )
    if dataset is not None and task.env_id is None:
        check_scale(actions, existing(dataset).action_space, dataset)
    if dataset is not None and not task.observation_keys:
        _check_entries(inner, existing(dataset).observation_space, task, dataset)


def check_scale(space: gym.Space[Any], recorded: gym.Space[Any], dataset: str) -> None:
    """Raise UserError where a dataset's actions are on another scale than those of the environment that comes with it.

    A policy learned from such actions would act on the wrong scale without any error.
    """
    if not (isinstance(space, Box) and isinstance(recorded, Box) and space.shape == recorded.shape):
        return
    if not np.allclose([space.low, space.high], [recorded.low, recorded.high]):
        low, high, least, most = (bound.tolist() for bound in (space.low, space.high, recorded.low, recorded.high))
        raise UserError(
            f"the environment that comes with {dataset} takes actions from {low} to {high}, those recorded are from {least} to "
            f"{most}: store the dataset with the environment wrapped in gymnasium's RescaleAction(env, -1, 1)",
            key="data.datasets",
        )


def _check_entries(space: gym.Space[Any], recorded: gym.Space[Any], task: Task, dataset: str) -> None:
    """Raise UserError where a recorded Dict has other entries than the environment's: equal sizes do not make them equal."""
    if not (isinstance(space, Dict) and isinstance(recorded, Dict)):
        return
    ours, theirs = ({"/".join(p): entry(s, p).shape for p in flat_paths(s)} for s in (space, recorded))
    if ours != theirs:
        raise UserError(
            f"the observations of the environment of {task.name} are {ours}, those of {dataset} {theirs}", key="task"
        )


@dataclass(frozen=True)
class EnvFactory:
    """Factory of a task's environment, for vectors of environments.

    It can be pickled for worker processes, which are told what this process trusts and has registered. ``render_mode`` is
    gymnasium's.
    """

    task: Task
    keys: tuple[str, ...] = ()
    render_mode: str | None = None

    def __call__(self) -> Env:
        """Return a new environment."""
        return make_env(self.task, self.keys, **self._settings())

    def __reduce__(self) -> tuple[Any, ...]:
        spec = _spec(self.task) if self.task.env_id is None else None
        return _partial, (self.task, self.keys, {"spec": spec, **self._settings()})

    def _settings(self) -> dict[str, Any]:
        return {} if self.render_mode is None else {"render_mode": self.render_mode}


def _partial(task: Task, keys: tuple[str, ...], settings: dict[str, Any]) -> Callable[[], Env]:
    return partial(make_env, task, keys, **settings)


def env_factory(task: Task, keys: tuple[str, ...], *, render_mode: str | None = None) -> Callable[[], Env]:
    """Return a factory of the task's environment."""
    return EnvFactory(task, keys, render_mode)
