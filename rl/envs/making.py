"""Evaluation environments of tasks, their observations flattened to one vector."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import gymnasium as gym
import minari
import numpy as np
from gymnasium.spaces import Box, Dict
from gymnasium.wrappers import TransformObservation

import rl.envs.antmaze
import rl.envs.maze2d
from egd.errors import UserError
from rl.envs.robotics import gymnasium_robotics
from rl.tasks import Task

Env = gym.Env[Any, Any]


def register() -> None:
    """Make the robotics environments and this package's own known to gymnasium."""
    gym.register_envs(gymnasium_robotics)
    rl.envs.maze2d.register()
    rl.envs.antmaze.register()


def flat_keys(space: gym.Space[Any], keys: tuple[str, ...]) -> tuple[str, ...]:
    """The entries of a dict observation to use, in order; () for a plain vector. UserError for an entry that is not there."""
    if not isinstance(space, Dict):
        return ()
    keys = keys or tuple(space.spaces)
    for key in keys:
        if key not in space.spaces:
            raise UserError(f"the observation has no '{key}', only {', '.join(space.spaces)}")
    return keys


def flatten_observation(observation: Any, keys: tuple[str, ...]) -> np.ndarray[Any, Any]:
    """(..., S) float32 from a vector or from the chosen entries of a dict observation."""
    if not keys:
        return np.asarray(observation, dtype=np.float32)
    return np.concatenate([np.asarray(observation[key], dtype=np.float32) for key in keys], axis=-1)


def make_env(task: Task, keys: tuple[str, ...] = (), **kwargs: Any) -> Env:
    """The task's evaluation environment with flat float32 observations. UserError when it cannot be made."""
    register()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            env = _make(task, **kwargs)
    except (gym.error.Error, ImportError, FileNotFoundError, TypeError) as error:
        raise UserError(
            f"cannot make the environment of {task.name} ({task.env_id or 'stored with its data'}): {error}"
        ) from error
    chosen = flat_keys(env.observation_space, keys or task.observation_keys)
    size = len(flatten_observation(env.observation_space.sample(), chosen))
    space = Box(-np.inf, np.inf, (size,), np.float32)
    return cast(Env, TransformObservation(env, lambda o: flatten_observation(o, chosen), space))


def _make(task: Task, **kwargs: Any) -> Env:
    if task.env_id is not None:
        return gym.make(task.env_id, max_episode_steps=task.max_steps, disable_env_checker=True, **task.env_kwargs, **kwargs)
    return cast(Env, minari.load_dataset(task.datasets[0]).recover_environment(eval_env=True, **kwargs))


def check_env(task: Task, state: int, action: int) -> None:
    """Make the environment once, before hours of training: UserError when it cannot be made or does not fit the data."""
    env = make_env(task)
    try:
        sizes = int(np.prod(env.observation_space.shape or ())), int(np.prod(env.action_space.shape or ()))
    finally:
        env.close()
    if sizes != (state, action):
        raise UserError(
            f"the environment of {task.name} has {sizes[0]} observation and {sizes[1]} action entries, its data {state} and "
            f"{action}; check data.datasets",
            key="task",
        )


def env_factory(task: Task, keys: tuple[str, ...], *, render_mode: str | None = None) -> Callable[[], Env]:
    """For vectors of environments; it pickles, for those of worker processes. ``render_mode`` as gymnasium has it."""
    return partial(make_env, task, keys, **({} if render_mode is None else {"render_mode": render_mode}))
